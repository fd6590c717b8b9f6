// The command line and the message file of `replay`. Both report a mistake on stderr and end the process with code 2.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "fields.h"

inline constexpr const char* kUsage =
    "usage: replay --target HOST:PORT --messages FILE [options]\n"
    "  --method PATH        the method that is called (default /carousel.v1.Inference/Stream)\n"
    "  --seconds S          how long is measured (default 2)\n"
    "  --warmup S           how long the streams are busy before that (default 1)\n"
    "  --setup-timeout S    how long the first messages may take (default 60)\n"
    "  --in-flight N        requests in flight on each stream (default 1)\n"
    "  --steps-per-answer N what an answer that ends a request counts as (default 1)\n"
    "  --end-field PATH     an answer ends its request only with this field, such as 6.2 (default: every answer does)\n"
    "  --count-field PATH   an answer counts as many steps as it has fields of this path, instead of --steps-per-answer\n"
    "  --error-fields PATHS an answer with one of these fields, separated by commas, is an error\n"
    "  --turn S             streams work in turn, each for so long, one at a time\n"
    "  --rate R             open loop: R requests a second at random times, whether or not answers come\n"
    "  --seed N             of those times (default 0)\n"
    "  --server-pid PID     a process whose CPU time is measured too, with that of those that it has started\n";

[[noreturn]] inline void refuse(const std::string& reason) {
  std::fprintf(stderr, "replay: %s\n%s", reason.c_str(), kUsage);
  std::exit(2);
}

struct Options {
  std::string target;
  std::string messages;
  std::string method = "/carousel.v1.Inference/Stream";
  double seconds = 2.0;
  double warmup_s = 1.0;
  double setup_timeout_s = 60.0;
  double turn_s = 0.0;
  double rate = 0.0;
  uint32_t in_flight = 1;
  uint32_t steps_per_answer = 1;
  uint32_t seed = 0;
  int server_pid = 0;
  FieldPath end_field;
  FieldPath count_field;
  std::vector<FieldPath> error_fields;
};

// Parses a number from `least` to `most`.
inline double parse_number(const std::string& name, const std::string& text, double least, double most) {
  char* rest = nullptr;
  errno = 0;
  const double value = std::strtod(text.c_str(), &rest);
  if (text.empty() || *rest != '\0' || errno != 0 || !(value >= least && value <= most)) {
    refuse(name + " = '" + text + "': expected a number from " + std::to_string(least) + " to " + std::to_string(most));
  }
  return value;
}

inline FieldPath parse_path_option(const std::string& name, const std::string& text) {
  FieldPath path = parse_field_path(text);
  if (path.empty()) refuse(name + " = '" + text + "': expected field numbers with dots between, such as 6.2");
  return path;
}

inline Options parse_options(int count, char** arguments) {
  Options options;
  for (int index = 1; index < count; index += 2) {
    const std::string name = arguments[index];
    if (index + 1 == count) refuse(name + ": expected a value after it");
    const std::string value = arguments[index + 1];
    const auto whole = [&](double least, double most) {
      return static_cast<uint32_t>(parse_number(name, value, least, most));
    };
    if (name == "--target") options.target = value;
    else if (name == "--messages") options.messages = value;
    else if (name == "--method") options.method = value;
    else if (name == "--seconds") options.seconds = parse_number(name, value, 0.01, 86400);
    else if (name == "--warmup") options.warmup_s = parse_number(name, value, 0, 3600);
    else if (name == "--setup-timeout") options.setup_timeout_s = parse_number(name, value, 0.1, 3600);
    else if (name == "--turn") options.turn_s = parse_number(name, value, 0.001, 3600);
    else if (name == "--rate") options.rate = parse_number(name, value, 0.1, 1e7);
    else if (name == "--in-flight") options.in_flight = whole(1, 1e6);
    else if (name == "--steps-per-answer") options.steps_per_answer = whole(1, 1e9);
    else if (name == "--seed") options.seed = whole(0, 4e9);
    else if (name == "--server-pid") options.server_pid = static_cast<int>(whole(1, 1e9));
    else if (name == "--end-field") options.end_field = parse_path_option(name, value);
    else if (name == "--count-field") options.count_field = parse_path_option(name, value);
    else if (name == "--error-fields") {
      for (size_t begin = 0; begin <= value.size();) {
        const size_t comma = std::min(value.find(',', begin), value.size());
        options.error_fields.push_back(parse_path_option(name, value.substr(begin, comma - begin)));
        begin = comma + 1;
      }
    } else refuse("unknown option '" + name + "'");
  }
  if (options.target.empty()) refuse("--target is missing");
  if (options.messages.empty()) refuse("--messages is missing");
  if (options.rate > 0 && options.turn_s > 0) refuse("--rate and --turn exclude each other");
  return options;
}

// What one stream sends: `first` one after the other, each answered before the next; then `steps`, again and again.
struct Sequence {
  uint32_t channel = 0;
  bool is_counted = true;
  std::vector<std::string> first;
  std::vector<std::string> steps;
};

// Reads the message file: "replay01", u32 number of streams; for each u32 channel, u32 1 when it is counted, then
// twice (first, steps) a list: u32 length, and for each message u32 size and its bytes. Little-endian.
inline std::vector<Sequence> read_sequences(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const auto fail = [&](const std::string& what) { refuse("--messages = '" + path + "': " + what); };
  const auto read_bytes = [&](size_t size) {
    std::string bytes(size, '\0');
    file.read(bytes.data(), static_cast<std::streamsize>(size));
    if (!file) fail("it ends early");
    return bytes;
  };
  const auto read_u32 = [&](uint32_t most) {
    const std::string bytes = read_bytes(4);
    uint32_t value = 0;
    for (int index = 3; index >= 0; index--) value = value << 8 | static_cast<unsigned char>(bytes[index]);
    if (value > most) fail(std::to_string(value) + ": expected at most " + std::to_string(most));
    return value;
  };
  const auto read_list = [&] {
    std::vector<std::string> messages(read_u32(10'000'000));
    for (std::string& message : messages) message = read_bytes(read_u32(1u << 30));
    return messages;
  };
  if (!file) fail("it cannot be opened");
  if (read_bytes(8) != "replay01") fail("it does not begin with 'replay01'");
  std::vector<Sequence> sequences(read_u32(1'000'000));
  if (sequences.empty()) fail("it has no stream");
  for (Sequence& sequence : sequences) {
    sequence.channel = read_u32(65'535);
    sequence.is_counted = read_u32(1) == 1;
    sequence.first = read_list();
    sequence.steps = read_list();
    if (sequence.steps.empty()) fail("a stream has no step message");
  }
  return sequences;
}
