/** A front end's Better Auth, with its JWT plugin and everything in memory; on the port of BETTER_AUTH_URL. */

import { createServer } from "node:http";
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { toNodeHandler } from "better-auth/node";
import { jwt } from "better-auth/plugins";

const auth = betterAuth({
  database: memoryAdapter({ user: [], session: [], account: [], verification: [], jwks: [] }),
  emailAndPassword: { enabled: true },
  plugins: [jwt()],
});

const port = Number(new URL(process.env["BETTER_AUTH_URL"] ?? "").port);
createServer(toNodeHandler(auth)).listen(port, "127.0.0.1");
