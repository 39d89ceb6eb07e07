// Lets the AsyncAPI parser read the document that is named, and ends with 1 when it finds an error or a warning.

import { readFile } from 'node:fs/promises';
import { argv, exit } from 'node:process';
import { Parser } from '@asyncapi/parser';

const { document, diagnostics } = await new Parser().parse(await readFile(argv[2], 'utf8'), { source: argv[2] });
const [ERROR, WARNING] = [0, 1];
const found = diagnostics.filter(({ severity }) => severity === ERROR || severity === WARNING);
for (const { severity, path, message } of found) {
  console.error(`${severity === ERROR ? 'error' : 'warning'} at ${path.join('.')}: ${message}`);
}
if (document === undefined || found.length > 0) exit(1);
console.log(`AsyncAPI ${document.version()}: ${document.operations().length} operations, ${document.messages().length} messages`);
