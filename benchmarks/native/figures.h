// What `replay` measured, and how it is printed: one line of JSON.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>
#include <vector>

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;

inline Clock::duration seconds(double count) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(count));
}

inline double seconds_between(Time begin, Time end) { return std::chrono::duration<double>(end - begin).count(); }

// User and system time so far of a process and of all processes that it has started and that still run, in seconds;
// what cannot be read counts 0.
inline double cpu_seconds(int pid) {
  const std::filesystem::path folder = "/proc/" + std::to_string(pid);
  std::ifstream file(folder / "stat");
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const size_t name_end = text.rfind(')');  // the name may hold spaces
  unsigned long user = 0;
  unsigned long system = 0;
  const char* format = " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu";
  if (name_end == std::string::npos || std::sscanf(text.c_str() + name_end + 1, format, &user, &system) != 2) return 0;
  double total = static_cast<double>(user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
  std::error_code error;
  for (std::filesystem::directory_iterator thread(folder / "task", error), end; !error && thread != end;
       thread.increment(error)) {
    std::ifstream children(thread->path() / "children");  // that this thread has started
    for (int child = 0; children >> child;) total += cpu_seconds(child);
  }
  return total;
}

inline std::string hex(const std::string& bytes) {
  std::string text;
  for (const char byte : bytes) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned char>(byte));
    text += digits;
  }
  return text;
}

// Prints `"name": value` of the given share of the sorted values; null when there is none.
inline void print_quantile(const std::string& name, std::vector<float>& values, double share) {
  if (values.empty()) {
    std::printf(", \"%s\": null", name.c_str());
    return;
  }
  std::sort(values.begin(), values.end());
  const auto place = static_cast<size_t>(std::lround(share * static_cast<double>(values.size() - 1)));
  std::printf(", \"%s\": %.9g", name.c_str(), static_cast<double>(values[place]));
}

// Counts of the measured window; `cpu_s` is the CPU time that the server took in it.
struct Figures {
  double elapsed_s = 0;
  double cpu_s = 0;
  size_t num_steps = 0;
  size_t num_answers = 0;
  size_t num_bytes = 0;
  size_t num_errors = 0;      // these also before and after the window
  size_t num_unanswered = 0;  // open loop: requests due in the window that were not answered in time
  std::string first_error;
  std::vector<std::vector<float>> latencies_s;  // of each stream
  std::vector<float> lags_s;  // open loop: how much later than due each request was sent

  // is_counted: which streams' latencies are in the percentiles.
  void print(const std::vector<bool>& is_counted, bool has_cpu, bool is_open_loop, bool by_stream) {
    std::vector<float> all;
    for (size_t index = 0; index < latencies_s.size(); index++) {
      if (is_counted[index]) all.insert(all.end(), latencies_s[index].begin(), latencies_s[index].end());
    }
    std::printf("{\"seconds\": %.6f, \"steps\": %zu, \"answers\": %zu, \"bytes\": %zu, \"requests\": %zu", elapsed_s,
                num_steps, num_answers, num_bytes, all.size());
    std::printf(", \"per_second\": %.3f", static_cast<double>(num_steps) / elapsed_s);
    print_quantile("p50_s", all, 0.5);
    print_quantile("p99_s", all, 0.99);
    print_quantile("p999_s", all, 0.999);
    if (has_cpu && num_steps != 0) std::printf(", \"cpu_us\": %.3f", cpu_s * 1e6 / static_cast<double>(num_steps));
    if (is_open_loop) {
      print_quantile("lag_p50_s", lags_s, 0.5);
      print_quantile("lag_p99_s", lags_s, 0.99);
      std::printf(", \"unanswered\": %zu", num_unanswered);
    }
    for (size_t index = 0; by_stream && index < latencies_s.size(); index++) {
      print_quantile("stream" + std::to_string(index) + "_p50_s", latencies_s[index], 0.5);
    }
    std::printf(", \"errors\": %zu, \"first_error\": \"%s\"}\n", num_errors, hex(first_error).c_str());
  }
};
