/** The one function of Next.js that docs/front-ends.md calls; the package itself is 400 MB with what it brings. */

declare module "next/headers" {
  export function headers(): Promise<Headers>;
}
