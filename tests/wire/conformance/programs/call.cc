// Makes one gRPC call, of any kind of method, with messages that are given, and prints what came of it.
//
// call TARGET METHOD DEADLINE_MS READS MESSAGE...
// METHOD: its path. DEADLINE_MS: 0 for none. READS: after how many responses it cancels; 0 for never. MESSAGE: bytes in
// hexadecimal. Prints a line "response HEX" for each response, then "status CODE", "message HEX", "details HEX", and
// "trailer NAME HEX" for each entry of the metadata that the call ended with.

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

namespace {

std::string from_hex(std::string_view hex) {
  std::string bytes;
  for (size_t at = 0; at + 1 < hex.size(); at += 2) {
    bytes.push_back(static_cast<char>(std::stoi(std::string(hex.substr(at, 2)), nullptr, 16)));
  }
  return bytes;
}

void print_hex(std::string_view bytes) {
  for (unsigned char byte : bytes) std::printf("%02x", byte);
  std::printf("\n");
}

std::string bytes_of(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!buffer.Dump(&slices).ok()) std::abort();
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

// Waits for the one operation that is in progress. Returns whether it did what it was to do.
bool next(grpc::CompletionQueue& queue) {
  void* tag = nullptr;
  bool ok = false;
  if (!queue.Next(&tag, &ok)) std::abort();
  return ok;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) return 2;
  grpc::GenericStub stub(grpc::CreateChannel(arguments[1], grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  const int deadline_ms = std::atoi(arguments[3]), reads = std::atoi(arguments[4]);
  if (deadline_ms) {
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(deadline_ms));
  }
  grpc::CompletionQueue queue;
  void* const tag = &queue;
  auto call = stub.PrepareCall(&context, arguments[2], &queue);
  call->StartCall(tag);
  bool ok = next(queue);
  for (int at = 5; ok && at < count; ++at) {
    grpc::Slice slice(from_hex(arguments[at]));
    call->Write(grpc::ByteBuffer(&slice, 1), tag);
    ok = next(queue);
  }
  if (ok) {
    call->WritesDone(tag);
    next(queue);
  }
  grpc::ByteBuffer response;
  for (int number = 1;; ++number) {
    call->Read(&response, tag);
    if (!next(queue)) break;
    std::printf("response ");
    print_hex(bytes_of(response));
    if (number == reads) context.TryCancel();
  }
  grpc::Status status;
  call->Finish(&status, tag);
  next(queue);
  std::printf("status %d\nmessage ", status.error_code());
  print_hex(status.error_message());
  std::printf("details ");
  print_hex(status.error_details());
  for (const auto& [name, value] : context.GetServerTrailingMetadata()) {
    std::printf("trailer %s ", std::string(name.data(), name.size()).c_str());
    print_hex({value.data(), value.size()});
  }
  return 0;
}
