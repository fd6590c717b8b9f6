// Makes one gRPC call, as call.cc does, with the package @grpc/grpc-js; the same arguments, and the same lines.

const grpc = require("@grpc/grpc-js");

const [target, method, deadlineMs, reads, ...messages] = process.argv.slice(2);
const client = new grpc.Client(target, grpc.credentials.createInsecure());
const options = Number(deadlineMs) ? { deadline: Date.now() + Number(deadlineMs) } : {};
const same = (bytes) => bytes;
const call = client.makeBidiStreamRequest(method, same, same, new grpc.Metadata(), options);
let number = 0;
call.on("data", (response) => {
  console.log(`response ${response.toString("hex")}`);
  number += 1;
  if (number === Number(reads)) call.cancel();
});
call.on("error", () => {}); // told by the status as well
call.on("status", (status) => {
  console.log(`status ${status.code}`);
  console.log(`message ${Buffer.from(status.code ? status.details : "").toString("hex")}`);
  console.log(`details ${(status.metadata.get("grpc-status-details-bin")[0] ?? Buffer.alloc(0)).toString("hex")}`);
  for (const name of Object.keys(status.metadata.getMap())) {
    for (const value of status.metadata.get(name)) {
      console.log(`trailer ${name} ${Buffer.from(value).toString("hex")}`);
    }
  }
  client.close();
});
for (const message of messages) call.write(Buffer.from(message, "hex"));
call.end();
