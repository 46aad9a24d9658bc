/** What a browser does by itself: it keeps Better Auth's cookies, and sends them back to it with the page's origin. */

export const cookies = new Map<string, string>();

/** What was sent: the method and the last part of the path of each request. */
export const sent: string[] = [];

/** How many requests to the service will have a token that is not valid, and how many to Better Auth will not arrive. */
export const faults = { tokens: 0, connections: 0 };

const origin = process.env["BETTER_AUTH_URL"] ?? "";
const fetchWithoutCookies = globalThis.fetch;

export const cookieHeader = () => [...cookies].map(([name, value]) => `${name}=${value}`).join("; ");

globalThis.fetch = async (input, init) => {
  const request = new Request(input, init);
  sent.push(`${request.method} ${new URL(request.url).pathname.split("/").pop()}`);
  if (!request.url.startsWith(origin)) {
    if (faults.tokens-- > 0) request.headers.set("Authorization", "Bearer outlived");
    return fetchWithoutCookies(request);
  }
  if (faults.connections-- > 0) throw new TypeError("fetch failed");
  request.headers.set("Origin", origin);
  request.headers.set("Cookie", cookieHeader());
  const response = await fetchWithoutCookies(request);
  for (const cookie of response.headers.getSetCookie()) {
    const [, name, value] = /^([^=]+)=([^;]*)/.exec(cookie) ?? [];
    if (name && value !== undefined) cookies.set(name, value);
  }
  return response;
};
