// Finds fields in serialised protobuf messages by their numbers, without a schema.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

// Field numbers from the outermost message inwards: "6.2" is field 2 of the message in field 6.
using FieldPath = std::vector<uint32_t>;

// Parses "6.2". Returns an empty path when the text is not of that form.
inline FieldPath parse_field_path(const std::string& text) {
  FieldPath path;
  uint32_t number = 0;
  bool has_digit = false;
  for (char letter : text + ".") {
    if (letter == '.') {
      if (!has_digit || number == 0) return {};
      path.push_back(number);
      number = 0;
      has_digit = false;
    } else if (letter >= '0' && letter <= '9' && number < (1u << 20)) {
      number = number * 10 + static_cast<uint32_t>(letter - '0');
      has_digit = true;
    } else {
      return {};
    }
  }
  return path;
}

// Reads one varint and removes it from `bytes`. Returns false at a broken message.
inline bool take_varint(std::string_view& bytes, uint64_t& value) {
  value = 0;
  for (size_t index = 0; index < bytes.size() && index < 10; index++) {
    const auto byte = static_cast<unsigned char>(bytes[index]);
    value |= static_cast<uint64_t>(byte & 0x7f) << (7 * index);
    if (byte < 0x80) {
      bytes.remove_prefix(index + 1);
      return true;
    }
  }
  return false;
}

// Counts the fields of `message` that `path` names, from its part `depth` on. Stops at a broken message.
inline size_t count_fields(std::string_view message, const FieldPath& path, size_t depth = 0) {
  size_t count = 0;
  uint64_t tag = 0;
  uint64_t size = 0;
  while (!message.empty() && take_varint(message, tag)) {
    std::string_view inside;
    switch (tag & 7) {
      case 0:  // varint
        if (!take_varint(message, size)) return count;
        size = 0;
        break;
      case 1:  // 64 bits
        size = 8;
        break;
      case 2:  // bytes, text, message or packed numbers
        if (!take_varint(message, size) || size > message.size()) return count;
        inside = message.substr(0, size);
        break;
      case 5:  // 32 bits
        size = 4;
        break;
      default:  // groups are not used in proto3
        return count;
    }
    if (size > message.size()) return count;
    if ((tag >> 3) == path[depth]) {
      count += depth + 1 == path.size() ? 1 : count_fields(inside, path, depth + 1);
    }
    message.remove_prefix(size);
  }
  return count;
}
