/** What a browser does by itself: it keeps Better Auth's cookies, and sends them back to it with the page's origin. */

export const cookies = new Map<string, string>();

const origin = process.env["BETTER_AUTH_URL"] ?? "";
const fetchWithoutCookies = globalThis.fetch;

globalThis.fetch = async (input, init) => {
  const request = new Request(input, init);
  if (!request.url.startsWith(origin)) return fetchWithoutCookies(request);
  request.headers.set("Origin", origin);
  request.headers.set("Cookie", [...cookies].map(([name, value]) => `${name}=${value}`).join("; "));
  const response = await fetchWithoutCookies(request);
  for (const cookie of response.headers.getSetCookie()) {
    const [, name, value] = /^([^=]+)=([^;]*)/.exec(cookie) ?? [];
    if (name && value !== undefined) cookies.set(name, value);
  }
  return response;
};
