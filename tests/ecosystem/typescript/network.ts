/** A network that a test can cut, and a log of what was sent over it. */

import { setTimeout as sleep } from "node:timers/promises";

export const network = {
  isDown: false,
  /** How many changes the service will carry out without an answer. */
  lostAnswers: 0,
  /** How many milliseconds an answer of the change feed takes longer. */
  slowness: 0,
  /** How likely it is that a call does not arrive; and as likely, that its answer is lost. */
  faults: 0,
  /** The method, the last part of the path, and the status of each answer that arrived. */
  log: [] as string[],
};

const fetchWithoutFaults = globalThis.fetch;

globalThis.fetch = async (input, init) => {
  const request = new Request(input, init);
  if (network.isDown || Math.random() < network.faults) throw new TypeError("fetch failed");
  const response = await fetchWithoutFaults(request);
  if (request.url.includes("/changes")) await sleep(network.slowness);
  if (network.isDown) throw new TypeError("fetch failed");
  const isLost = request.method !== "GET" && network.lostAnswers > 0;
  if (isLost) network.lostAnswers--;
  const line = `${request.method} ${new URL(request.url).pathname.split("/").pop()}`;
  network.log.push(isLost ? `${line} lost` : `${line} ${response.status}`);
  if (isLost || Math.random() < network.faults) throw new TypeError("fetch failed");
  return response;
};
