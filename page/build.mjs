// Writes service/page: the page as the server sends it, and the licences of the packages in it.

import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { build } from "esbuild";

const HERE = import.meta.dirname;
const TO = join(HERE, "..", "service", "page");
const MAX_BYTES = 300_000;

/** The digest of the bundle's sources: names and contents, sorted by name. tests/page/test_bundle.py computes it too. */
async function digest() {
  const names = ["page/build.mjs", "page/package-lock.json"];
  for (const folder of ["page/src", "proto/carousel/v1"]) {
    for (const one of await readdir(join(HERE, "..", folder), { withFileTypes: true })) {
      if (one.isFile()) names.push(`${folder}/${one.name}`);
    }
  }
  const hash = createHash("sha256");
  for (const name of names.sort()) hash.update(`${name}\0`).update(await readFile(join(HERE, "..", name))).update("\0");
  return hash.digest("hex");
}

/** The packages whose code is in the bundle. */
function packagesOf(metafile) {
  const found = new Set();
  for (const output of Object.values(metafile.outputs)) {
    for (const [path, { bytesInOutput }] of Object.entries(output.inputs)) {
      const [, name] = /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path) ?? [];
      if (name && bytesInOutput > 0) found.add(name);
    }
  }
  return [...found].sort();
}

/** The first comment of a file. */
async function headOf(...path) {
  const lines = (await readFile(join(HERE, "node_modules", ...path), "utf8")).split("\n");
  const end = lines.findIndex((line) => !line.startsWith("//"));
  return lines.slice(0, end).map((line) => line.slice(3).trimEnd()).join("\n");
}

async function licences(names) {
  const parts = ["page.js and page.css have code of these packages in them.\n"];
  const underApache = [];
  for (const name of names) {
    const folder = join(HERE, "node_modules", name);
    const about = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
    const file = (await readdir(folder)).find((one) => /^licen[cs]e/i.test(one));
    parts.push(`${"=".repeat(80)}\n${name} ${about.version}\nLicence: ${about.license}\n`);
    if (file) {
      parts.push(`${(await readFile(join(folder, file), "utf8")).trim()}\n`);
      continue;
    }
    if (!about.license.includes("Apache-2.0")) throw new Error(`${name} has no file with its licence`);
    underApache.push(name);
    parts.push(`${await headOf(name, "dist", "esm", "index.js")}\n`);
    if (about.license.includes("BSD-3-Clause")) parts.push(`${await headOf(name, "dist", "esm", "wire", "varint.js")}\n`);
  }
  const apache = (await readFile(join(HERE, "..", "LICENSE"), "utf8")).trim();
  parts.push(`${"=".repeat(80)}\nThe Apache Licence, of ${underApache.join(", ")}\n\n${apache}\n`);
  return parts.join("\n");
}

const sources = await digest();
const built = await build({
  entryPoints: {
    page: join(HERE, "src", "main.ts"),
    worklet: join(HERE, "src", "worklet.ts"),
    styles: join(HERE, "src", "styles.css"),
  },
  bundle: true,
  minify: true,
  write: false,
  metafile: true,
  outdir: TO,
  format: "iife",
  target: ["es2022"],
  legalComments: "none",
  absWorkingDir: HERE,
  banner: { js: `/* Made by scripts/page of ${sources}; third-party code: THIRD_PARTY.txt */` },
});
await mkdir(TO, { recursive: true });
const files = new Map(
  built.outputFiles.map((file) => [file.path.endsWith(".css") ? "page.css" : basename(file.path), file.contents]),
);
files.set("index.html", await readFile(join(HERE, "src", "index.html")));
files.set("THIRD_PARTY.txt", Buffer.from(await licences(packagesOf(built.metafile))));
let total = 0;
for (const [name, contents] of files) {
  total += contents.length;
  console.log(`${name} ${contents.length}`);
  await writeFile(join(TO, name), contents);
}
console.log(`in all ${total}`);
if (total > MAX_BYTES) throw new Error(`the page has ${total} bytes, more than ${MAX_BYTES}`);
