/** The front end's server, on the port of BETTER_AUTH_URL: Better Auth behind its route handler, its tables made first. */

import { createServer } from "node:http";
import { getMigrations } from "better-auth/db/migration";
import { toNodeHandler } from "better-auth/node";
import { GET, POST } from "./app/api/auth/[...all]/route";
import { auth } from "./lib/auth";

async function main() {
  // What `npx auth@latest migrate` does; that command wants Node.js 22.
  const { runMigrations } = await getMigrations(auth.options);
  await runMigrations();
  const port = Number(new URL(process.env["BETTER_AUTH_URL"] ?? "").port);
  createServer(toNodeHandler((request) => (request.method === "GET" ? GET : POST)(request))).listen(port, "127.0.0.1");
}

void main();
