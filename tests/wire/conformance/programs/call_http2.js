// Makes one gRPC call, as call.cc does, with Node's own HTTP/2 alone; the same arguments, and the same lines.

const http2 = require("node:http2");

const [target, method, deadlineMs, reads, ...messages] = process.argv.slice(2);
const session = http2.connect(`http://${target}`);
const headers = { ":method": "POST", ":path": method, "content-type": "application/grpc", te: "trailers" };
if (Number(deadlineMs)) headers["grpc-timeout"] = `${deadlineMs}m`;
const call = session.request(headers);
let received = Buffer.alloc(0);
let number = 0;
let ended = null;

call.on("response", (first) => {
  if (first["grpc-status"] !== undefined) ended = first;
});
call.on("trailers", (trailers) => {
  ended = trailers;
});
call.on("data", (chunk) => {
  received = Buffer.concat([received, chunk]);
  while (received.length >= 5 && received.length >= 5 + received.readUInt32BE(1)) {
    const end = 5 + received.readUInt32BE(1);
    console.log(`response ${received.subarray(5, end).toString("hex")}`);
    received = received.subarray(end);
    number += 1;
    if (number === Number(reads)) call.close(http2.constants.NGHTTP2_CANCEL);
  }
});
call.on("error", () => {}); // "close" comes as well
call.on("close", () => {
  const status = ended ?? { "grpc-status": "1" };
  console.log(`status ${status["grpc-status"]}`);
  console.log(`message ${Buffer.from(decodeURIComponent(status["grpc-message"] ?? "")).toString("hex")}`);
  console.log(`details ${Buffer.from(status["grpc-status-details-bin"] ?? "", "base64").toString("hex")}`);
  for (const [name, values] of Object.entries(status)) {
    if (name.startsWith("grpc-") || name.startsWith(":")) continue;
    for (const value of values.split(", ")) {
      console.log(`trailer ${name} ${Buffer.from(value, name.endsWith("-bin") ? "base64" : "utf8").toString("hex")}`);
    }
  }
  session.close();
});
for (const message of messages) {
  const bytes = Buffer.from(message, "hex");
  const head = Buffer.alloc(5);
  head.writeUInt32BE(bytes.length, 1);
  call.write(Buffer.concat([head, bytes]));
}
call.end();
