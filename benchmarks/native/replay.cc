// Replays prepared messages on many bidirectional gRPC streams, and measures the answers.
//
// Each stream sends its first messages one by one. When all streams are ready, each sends its step messages again and
// again, with a bounded number of requests in flight; after a warm-up, answers are counted for some seconds. With
// --rate requests are sent at random times instead, and their latency counts from the time at which they were due.
// Prints one line of JSON. Answers are not parsed, except for the presence of some fields (fields.h).

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <sys/prctl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "fields.h"
#include "figures.h"
#include "options.h"

namespace {

constexpr double kGraceS = 10.0;  // how long a window without an answer, and an open loop, wait for late answers

grpc::ByteBuffer as_buffer(const std::string& bytes) {
  grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

// What a completion-queue event is about: the tag is the stream's index times 3 plus this.
enum Kind : size_t { kStarted, kWritten, kRead, kNumKinds };

struct Stream {
  Sequence sequence;
  std::vector<grpc::ByteBuffer> steps;
  grpc::ClientContext context;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call;
  grpc::ByteBuffer answer;
  size_t num_first_written = 0;
  size_t num_first_answered = 0;
  size_t num_steps_written = 0;
  bool is_writing = false;      // gRPC takes one write of a stream at a time
  std::deque<Time> to_write;    // when each request was due that is not written yet
  std::deque<Time> unanswered;  // when each request was due that is written and not answered

  bool is_ready() const { return num_first_answered == sequence.first.size(); }
};

class Replay {
 public:
  explicit Replay(Options options) : options_(std::move(options)) {
    std::map<uint32_t, std::unique_ptr<grpc::GenericStub>> stubs;
    for (Sequence& sequence : read_sequences(options_.messages)) {
      auto& stub = stubs[sequence.channel];
      if (!stub) {
        grpc::ChannelArguments arguments;
        arguments.SetInt("grpc.use_local_subchannel_pool", 1);  // else channels to one target share a connection
        arguments.SetMaxReceiveMessageSize(-1);
        stub = std::make_unique<grpc::GenericStub>(
            grpc::CreateCustomChannel(options_.target, grpc::InsecureChannelCredentials(), arguments));
      }
      auto stream = std::make_unique<Stream>();
      for (const std::string& step : sequence.steps) stream->steps.push_back(as_buffer(step));
      stream->sequence = std::move(sequence);
      stream->call = stub->PrepareCall(&stream->context, options_.method, &queue_);
      streams_.push_back(std::move(stream));
    }
    figures_.latencies_s.resize(streams_.size());
  }

  // Returns the process's exit code.
  int run() {
    const bool is_measured = measure();
    stop_arrivals_ = true;
    if (arrivals_.joinable()) arrivals_.join();
    end_streams();
    if (!is_measured) return 1;
    std::vector<bool> is_counted;
    for (const auto& stream : streams_) is_counted.push_back(stream->sequence.is_counted);
    figures_.elapsed_s = seconds_between(begin_, end_);
    figures_.print(is_counted, options_.server_pid != 0, options_.rate > 0, options_.turn_s > 0);
    return 0;
  }

 private:
  static void* tag(size_t index, Kind kind) { return reinterpret_cast<void*>(index * kNumKinds + kind); }

  bool is_over() const { return end_ != Time(); }
  bool has_answer() const { return figures_.num_answers + figures_.num_errors > 0; }

  // Sets the streams up and keeps them busy until the window is over. Returns false when that failed.
  bool measure() {
    for (size_t index = 0; index < streams_.size(); index++) streams_[index]->call->StartCall(tag(index, kStarted));
    const Time setup_deadline = Clock::now() + seconds(options_.setup_timeout_s);
    for (;;) {
      void* event = nullptr;
      bool ok = false;
      const auto until = std::chrono::system_clock::now() + std::chrono::milliseconds(20);
      const bool has_event = queue_.AsyncNext(&event, &ok, until) == grpc::CompletionQueue::GOT_EVENT;
      const std::lock_guard<std::mutex> lock(mutex_);
      const Time now = Clock::now();
      if (has_event && !handle(reinterpret_cast<size_t>(event), ok, now)) return false;
      if (!is_running_ && now >= setup_deadline) {
        std::fprintf(stderr, "replay: %zu of %zu streams were ready in time\n", num_ready_, streams_.size());
        return false;
      }
      if (!is_running_) continue;
      if (!is_counting_ && !is_over() && now >= warm_at_) {
        is_counting_ = true;
        begin_ = now;
        figures_.cpu_s = -cpu_seconds(options_.server_pid);
      } else if (is_counting_ && now >= end_at_ + seconds(has_answer() ? 0 : kGraceS)) {
        is_counting_ = false;
        end_ = now;
        figures_.cpu_s += cpu_seconds(options_.server_pid);
      }
      if (is_over() && (figures_.num_unanswered == 0 || now >= end_at_ + seconds(kGraceS))) return true;
    }
  }

  // Returns false when the replay cannot continue.
  bool handle(size_t event, bool ok, Time now) {
    const size_t index = event / kNumKinds;
    Stream& stream = *streams_[index];
    if (!ok) {
      std::fprintf(stderr, "replay: the server ended stream %zu after %zu first messages and %zu steps\n", index,
                   stream.num_first_answered, stream.num_steps_written);
      return false;
    }
    switch (event % kNumKinds) {
      case kStarted:
        stream.call->Read(&stream.answer, tag(index, kRead));
        if (stream.is_ready()) count_ready(now);
        write_next(index);
        return true;
      case kWritten:
        stream.is_writing = false;
        write_next(index);
        return true;
      default:
        return take_answer(index, now);
    }
  }

  // Writes the stream's next message, when there is one that may be written now.
  void write_next(size_t index) {
    Stream& stream = *streams_[index];
    if (stream.is_writing) return;
    if (!stream.is_ready()) {
      if (stream.num_first_written > stream.num_first_answered) return;
      stream.is_writing = true;
      stream.call->Write(as_buffer(stream.sequence.first[stream.num_first_written++]), tag(index, kWritten));
    } else if (!stream.to_write.empty()) {
      stream.is_writing = true;
      stream.unanswered.push_back(stream.to_write.front());
      stream.to_write.pop_front();
      stream.call->Write(stream.steps[stream.num_steps_written++ % stream.steps.size()], tag(index, kWritten));
    }
  }

  void count_ready(Time now) {
    if (++num_ready_ < streams_.size()) return;
    is_running_ = true;
    began_ = now;
    warm_at_ = now + seconds(options_.warmup_s);
    end_at_ = warm_at_ + seconds(options_.seconds);
    if (options_.rate > 0) {
      figures_.num_unanswered = 1;  // stands for the thread, which takes it off at its end
      arrivals_ = std::thread([this] { send_at_random_times(); });
      return;
    }
    const size_t num_busy = options_.turn_s > 0 ? 1 : streams_.size();
    for (size_t index = 0; index < num_busy; index++) {
      for (uint32_t number = 0; number < options_.in_flight; number++) streams_[index]->to_write.push_back(now);
      write_next(index);
    }
  }

  bool take_answer(size_t index, Time now) {
    Stream& stream = *streams_[index];
    const std::string_view answer = contiguous(stream.answer);
    const bool is_error = std::any_of(options_.error_fields.begin(), options_.error_fields.end(),
                                      [&](const FieldPath& path) { return count_fields(answer, path) > 0; });
    if (is_error && figures_.num_errors++ == 0) figures_.first_error = std::string(answer.substr(0, 2000));
    if (!stream.is_ready()) {
      if (is_error) {
        std::fprintf(stderr, "replay: a first message of stream %zu was refused: %s\n", index,
                     hex(figures_.first_error).c_str());
        return false;
      }
      stream.num_first_answered++;
      if (stream.is_ready()) count_ready(now);
      write_next(index);
    } else if (stream.unanswered.empty()) {
      if (!is_error) figures_.num_errors++;  // nobody asked for it
    } else {
      const bool is_end = is_error || options_.end_field.empty() || count_fields(answer, options_.end_field) > 0;
      if (is_counting_ && stream.sequence.is_counted && !is_error) count_answer(answer, is_end);
      if (is_end) finish_request(index, now, is_error);
    }
    stream.call->Read(&stream.answer, tag(index, kRead));
    return true;
  }

  void count_answer(std::string_view answer, bool is_end) {
    figures_.num_answers++;
    figures_.num_bytes += answer.size();
    if (!options_.count_field.empty()) {
      figures_.num_steps += count_fields(answer, options_.count_field);
    } else if (is_end) {
      figures_.num_steps += options_.steps_per_answer;
    }
  }

  void finish_request(size_t index, Time now, bool is_error) {
    Stream& stream = *streams_[index];
    const Time due = stream.unanswered.front();
    stream.unanswered.pop_front();
    const bool is_timed = options_.rate > 0 ? due >= warm_at_ : is_counting_;
    if (is_timed && !is_error) {
      figures_.latencies_s[index].push_back(static_cast<float>(seconds_between(due, now)));
    }
    if (options_.rate > 0) {
      if (is_timed) figures_.num_unanswered--;
      return;
    }
    if (is_over()) return;
    const size_t next = options_.turn_s > 0 ? whose_turn(now) : index;
    streams_[next]->to_write.push_back(now);
    write_next(next);
  }

  size_t whose_turn(Time now) const {
    return static_cast<size_t>(seconds_between(began_, now) / options_.turn_s) % streams_.size();
  }

  // The open loop: a Poisson process over all streams in turn. Runs on a thread of its own.
  void send_at_random_times() {
    prctl(PR_SET_TIMERSLACK, 1UL);  // else the kernel may wake it 50 us late
    std::mt19937_64 random(options_.seed);
    std::exponential_distribution<double> gap_s(options_.rate);
    Time due = began_;
    for (size_t number = 0; !stop_arrivals_; number++) {
      due += seconds(gap_s(random));
      if (due >= end_at_) break;
      std::this_thread::sleep_until(due);
      const std::lock_guard<std::mutex> lock(mutex_);
      const size_t index = number % streams_.size();
      if (due >= warm_at_) {
        figures_.num_unanswered++;
        figures_.lags_s.push_back(static_cast<float>(seconds_between(due, Clock::now())));
      }
      streams_[index]->to_write.push_back(due);
      write_next(index);
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    figures_.num_unanswered--;
  }

  // Cancels all streams and waits until the server's answers end, for a second at most.
  void end_streams() {
    for (const auto& stream : streams_) stream->context.TryCancel();
    const auto until = std::chrono::system_clock::now() + std::chrono::seconds(1);
    size_t num_ended = 0;
    void* event = nullptr;
    bool ok = false;
    while (num_ended < streams_.size() && queue_.AsyncNext(&event, &ok, until) == grpc::CompletionQueue::GOT_EVENT) {
      const size_t number = reinterpret_cast<size_t>(event);
      if (number % kNumKinds == kRead) num_ended++;
    }
  }

  // The bytes of an answer, valid until the next call.
  std::string_view contiguous(const grpc::ByteBuffer& buffer) {
    if (buffer.TrySingleSlice(&slice_).ok()) {
      return {reinterpret_cast<const char*>(slice_.begin()), slice_.size()};
    }
    std::vector<grpc::Slice> slices;
    scratch_.clear();
    if (buffer.Dump(&slices).ok()) {
      for (const grpc::Slice& slice : slices) {
        scratch_.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
      }
    }
    return scratch_;
  }

  const Options options_;
  grpc::CompletionQueue queue_;
  std::vector<std::unique_ptr<Stream>> streams_;
  std::mutex mutex_;  // guards everything here while the open loop's thread runs
  std::thread arrivals_;
  std::atomic<bool> stop_arrivals_{false};
  size_t num_ready_ = 0;
  bool is_running_ = false;   // all streams are ready
  bool is_counting_ = false;  // between `begin_` and `end_`
  Time began_, warm_at_, end_at_, begin_, end_;
  Figures figures_;
  grpc::Slice slice_;
  std::string scratch_;
};

}  // namespace

int main(int count, char** arguments) {
  auto replay = std::make_unique<Replay>(parse_options(count, arguments));
  const int code = replay->run();
  std::fflush(nullptr);
  std::_Exit(code);  // without waiting for the threads of the connections
}
