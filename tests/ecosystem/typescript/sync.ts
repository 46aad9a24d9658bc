/** What docs/sync.md shows, against a live service: polling, and two clients that work offline. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { after, before, beforeEach, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { environmentManager, focusManager, QueryClient, QueryObserver } from "@tanstack/react-query";
import "fake-indexeddb/auto";
import { getRxStorageMemory } from "rxdb/plugins/storage-memory";

// First: what comes after takes fetch as it finds it.
import { network } from "./network";
import { freshTasks, tasksQuery } from "./lib/fresh-tasks";
import { openTasks, type Conflict } from "./lib/offline";
import { allTasks, create, etagOf, granted, type Task } from "./lib/tasks";
import { todo } from "./lib/todo";

type Client = Awaited<ReturnType<typeof openTasks>> & { conflicts: Conflict[]; errors: string[] };
type Shown = Partial<Task>;

const USER = "alice";
const path = { user_id: USER };
let phone: Client;
let laptop: Client;

/** Try again while an assertion fails. */
async function eventually(check: () => Promise<void>): Promise<void> {
  for (const deadline = Date.now() + 5_000; ; await sleep(20)) {
    try {
      return await check();
    } catch (error) {
      if (!(error instanceof assert.AssertionError) || Date.now() > deadline) throw error;
    }
  }
}

async function open(options: Parameters<typeof openTasks>[2]): Promise<Client> {
  const conflicts: Conflict[] = [];
  const errors: string[] = [];
  const client = await openTasks(USER, (conflict) => conflicts.push(conflict), { multiInstance: false, ...options });
  client.replication.retryTime = 30;
  client.replication.error$.subscribe((error) => errors.push(JSON.stringify(error.parameters)));
  return { ...client, conflicts, errors };
}

/** The phone has the storage of the page, the laptop another. */
const openPhone = () => open({});
const openLaptop = () => open({ name: "laptop", storage: getRxStorageMemory() });

async function tasksOfService(): Promise<Shown[]> {
  const found: Task[] = [];
  for await (const task of allTasks(USER)) found.push(task);
  return found.map(({ user_id, ...task }) => task).sort((one, other) => one.id - other.id);
}

async function tasksOf(client: Client): Promise<Shown[]> {
  const found = (await client.tasks.find().exec()).map((document) => document.toJSON());
  return found.map(({ key, edited_at, ...task }) => task as Shown).sort((one, other) => Number(one.id) - Number(other.id));
}

/** Wait until both clients hold exactly what the service holds, and return it. */
async function agreed(...clients: Client[]): Promise<Shown[]> {
  let held: Shown[] = [];
  await eventually(async () => {
    for (const client of clients) client.replication.reSync();
    await sleep(30);
    held = await tasksOfService();
    for (const client of clients) assert.deepEqual(await tasksOf(client), held);
  });
  return held;
}

async function find(client: Client, title: string) {
  const found = await client.tasks.find({ selector: { title } }).exec();
  assert.deepEqual(found.map((task) => task.title), [title]);
  return found[0]!;
}

/** Let both do something while neither reaches the service. Then one comes back, and after it has synced, the other. */
async function offline(acts: (() => Promise<unknown>)[], first: Client, second: Client): Promise<void> {
  network.isDown = true;
  for (const act of acts) await act();
  await sleep(50);
  await second.replication.pause();
  network.isDown = false;
  await agreed(first);
  await second.replication.start();
  await agreed(first, second);
}

const titles = (tasks: Shown[]) => tasks.map((task) => task.title);
const flask = (...command: string[]) =>
  execFileSync(process.env["PYTHON"] ?? "", ["-m", "flask", ...command], { cwd: process.env["ROOT"] });

async function deleteAll(): Promise<void> {
  const [left, done] = [{ status: "incomplete" }, { status: "complete" }] as const;
  const complete = () => granted(todo.PATCH("/api/{user_id}/tasks", { params: { path, query: left }, body: done }));
  const clear = () => granted(todo.DELETE("/api/{user_id}/tasks", { params: { path, query: done } }));
  while ((await complete()).data.more);
  while ((await clear()).data.more);
}

before(async () => {
  [phone, laptop] = [await openPhone(), await openLaptop()];
});

beforeEach(async () => {
  await deleteAll();
  assert.deepEqual(await agreed(phone, laptop), []);
  for (const { conflicts, errors } of [phone, laptop]) conflicts.length = errors.length = 0;
  network.log.length = 0;
});

after(async () => {
  await phone.database.close();
  await laptop.database.close();
});

test("a poll that finds nothing new is a 304", async () => {
  const none = await freshTasks(USER);
  assert.deepEqual([none.tasks, await freshTasks(USER, none)], [[], none]);
  await create(USER, crypto.randomUUID(), { title: "Buy milk" });
  const one = await freshTasks(USER, none);
  assert.deepEqual(titles(one.tasks), ["Buy milk"]);
  assert.equal(await freshTasks(USER, one), one);
  const statuses = network.log.filter((entry) => entry.startsWith("GET tasks "));
  assert.deepEqual(statuses, ["200", "304", "200", "304"].map((status) => `GET tasks ${status}`));
});

test("a query of TanStack polls, shows only what is new, and rests while the page is hidden", async () => {
  environmentManager.setIsServer(() => false);
  const client = new QueryClient();
  const observer = new QueryObserver(client, { ...tasksQuery(USER), refetchInterval: 20 });
  const shown: Task[][] = [];
  const stop = observer.subscribe(({ data }) => void (data && shown.at(-1) !== data && shown.push(data)));
  await eventually(async () => assert.ok(network.log.includes("GET tasks 304")));
  await create(USER, crypto.randomUUID(), { title: "Buy milk" });
  await eventually(async () => assert.equal(shown.length, 2));
  focusManager.setFocused(false);
  await sleep(50);
  const polls = () => network.log.filter((entry) => entry.startsWith("GET tasks ")).length;
  const before = polls();
  await sleep(100);
  assert.equal(polls(), before);
  stop();
  client.clear();
  assert.deepEqual(shown.map(titles), [[], ["Buy milk"]]);
});

test("a fetch of Node.js keeps no answer", async () => {
  const { response } = await todo.GET("/api/{user_id}/tasks", { params: { path } });
  assert.equal(response.headers.get("Cache-Control"), "private, no-cache");
  await todo.GET("/api/{user_id}/tasks", { params: { path } });
  const polls = network.log.filter((entry) => entry.startsWith("GET tasks "));
  assert.deepEqual(polls, ["GET tasks 200", "GET tasks 200"]);
});

test("a client makes the tag of a task that it has from anywhere", async () => {
  const { data: task } = await create(USER, crypto.randomUUID(), { title: "Buy milk" });
  const params = { path: { ...path, task_id: task.id } };
  const { response } = await todo.GET("/api/{user_id}/tasks/{task_id}", { params });
  assert.equal(response.headers.get("ETag"), etagOf(task));
});

test("what both created and edited offline is at both afterwards", async () => {
  await phone.add("Buy milk");
  await laptop.add("Call the bank", "at nine");
  await agreed(phone, laptop);
  const edits = [
    async () => (await find(phone, "Buy milk")).patch({ title: "Buy bread" }),
    async () => (await find(laptop, "Buy milk")).patch({ description: "Two litres" }),
    async () => (await find(laptop, "Call the bank")).patch({ status: "complete" }),
    () => phone.add("From the phone"),
    () => laptop.add("From the laptop"),
  ];
  await offline(edits, phone, laptop);
  const held = (await tasksOfService()).map(({ title, description, status }) => [title, description, status]);
  assert.deepEqual(held.sort(), [
    ["Buy bread", "Two litres", "incomplete"],
    ["Call the bank", "at nine", "complete"],
    ["From the laptop", null, "incomplete"],
    ["From the phone", null, "incomplete"],
  ]);
  assert.deepEqual([phone.conflicts, laptop.conflicts], [[], []]);
  assert.ok(network.log.some((entry) => /^PUT \d+ 412$/.test(entry)));
});

test("of two edits of one field the later stays, and the earlier is told", async () => {
  await phone.add("Buy milk");
  await agreed(phone, laptop);
  const edits = [
    async () => (await find(phone, "Buy milk")).patch({ title: "Buy bread", status: "complete" }),
    async () => (await find(laptop, "Buy milk")).patch({ title: "Buy butter" }),
  ];
  await offline(edits, phone, laptop);
  const [task] = await tasksOfService();
  assert.deepEqual([task?.title, task?.status], ["Buy butter", "complete"]);
  assert.deepEqual(phone.conflicts, []);
  const told = laptop.conflicts.map(({ reason, mine, theirs }) => [reason, mine.title, theirs?.title]);
  assert.deepEqual(told, [["title", "Buy butter", "Buy bread"]]);
});

test("a deletion arrives, and another client's edit stops it", async () => {
  await phone.add("Buy milk");
  await phone.add("Call the bank");
  await agreed(phone, laptop);
  const edits = [
    async () => (await find(phone, "Buy milk")).patch({ title: "Buy bread" }),
    async () => (await find(laptop, "Buy milk")).remove(),
    async () => (await find(laptop, "Call the bank")).remove(),
  ];
  await offline(edits, phone, laptop);
  assert.deepEqual(titles(await tasksOfService()), ["Buy bread"]);
  assert.deepEqual(laptop.conflicts.map(({ reason, theirs }) => [reason, theirs?.title]), [["deleted", "Buy bread"]]);
});

test("an edit of a task that is gone is told", async () => {
  await phone.add("Buy milk");
  await agreed(phone, laptop);
  const edits = [
    async () => (await find(phone, "Buy milk")).remove(),
    async () => (await find(laptop, "Buy milk")).patch({ title: "Buy bread" }),
  ];
  await offline(edits, phone, laptop);
  assert.deepEqual(await tasksOfService(), []);
  assert.deepEqual(laptop.conflicts.map(({ reason, mine }) => [reason, mine.title]), [["deleted", "Buy bread"]]);
});

test("bulk calls appear in the feed, task by task", async () => {
  for (const title of ["One", "Two", "Three"]) await phone.add(title);
  await agreed(phone, laptop);
  await (await find(laptop, "Two")).patch({ status: "complete" });
  await agreed(phone, laptop);
  const { data: deleted } = await granted(
    todo.DELETE("/api/{user_id}/tasks", { params: { path, query: { status: "complete" } } }),
  );
  const params = { path, query: { status: "incomplete" } } as const;
  const { data: changed } = await granted(todo.PATCH("/api/{user_id}/tasks", { params, body: { status: "complete" } }));
  assert.deepEqual([deleted, changed], [{ deleted: 1, more: false }, { changed: 2, more: false }]);
  const held = await agreed(phone, laptop);
  assert.deepEqual(held.map(({ title, status }) => [title, status]), [["One", "complete"], ["Three", "complete"]]);
});

test("after a 410 a client drops what the service no longer has", async () => {
  for (const title of ["Deleted by the phone", "Edited by the laptop", "Untouched"]) await phone.add(title);
  await agreed(phone, laptop);
  const keys = (await laptop.tasks.find().exec()).map((task) => task.key).sort();
  await laptop.replication.pause();
  await (await find(phone, "Deleted by the phone")).remove();
  await (await find(laptop, "Edited by the laptop")).patch({ title: "Edited offline" });
  await agreed(phone);
  flask("users", "resync");
  await laptop.replication.start();
  assert.deepEqual(titles(await agreed(phone, laptop)).sort(), ["Edited offline", "Untouched"]);
  assert.equal(network.log.filter((entry) => entry === "GET changes 410").length, 2);
  assert.ok((await laptop.tasks.find().exec()).every((task) => keys.includes(task.key)));
  assert.deepEqual([phone.conflicts, laptop.conflicts], [[], []]);
});

test("after a 410 a client drops what it has created and never pulled", async () => {
  network.slowness = 200;
  await phone.add("Buy milk");
  await eventually(async () => assert.ok(network.log.includes("POST tasks 201")));
  network.isDown = true;
  await sleep(250);
  await phone.replication.pause();
  network.isDown = false;
  network.slowness = 0;
  await deleteAll();
  flask("users", "resync");
  await phone.replication.start();
  assert.deepEqual(await agreed(phone, laptop), []);
});

test("a create whose answer is lost makes one task", async () => {
  const counts = new Set<number>();
  const counting = phone.tasks.count().$.subscribe((count) => counts.add(count));
  network.lostAnswers = 3;
  await phone.add("Pay the rent");
  await eventually(async () => assert.equal(network.lostAnswers, 0));
  assert.deepEqual(titles(await agreed(phone, laptop)), ["Pay the rent"]);
  counting.unsubscribe();
  assert.deepEqual([...counts], [0, 1]);
  assert.ok(network.log.filter((entry) => entry.startsWith("POST")).length > 3);
});

test("a create whose answer is lost may be edited before it is sent again", async () => {
  network.lostAnswers = 3;
  const task = await phone.add("Pay the rent");
  await eventually(async () => assert.ok(network.lostAnswers < 3));
  await task.incrementalPatch({ title: "Pay the baker", status: "complete" });
  const held = await agreed(phone, laptop);
  assert.deepEqual(held.map(({ title, status }) => [title, status]), [["Pay the baker", "complete"]]);
  assert.deepEqual([phone.conflicts, laptop.conflicts], [[], []]);
});

test("a create whose answer is lost may be deleted before it is sent again", async () => {
  network.lostAnswers = 3;
  const task = await phone.add("Pay the rent");
  await eventually(async () => assert.ok(network.lostAnswers < 3));
  await task.remove();
  await eventually(async () => assert.ok(network.log.some((entry) => /^DELETE \d+ 204$/.test(entry))));
  assert.deepEqual(await agreed(phone, laptop), []);
});

test("the edit of another client to a create whose answer is lost is merged", async () => {
  network.lostAnswers = 1;
  const task = await phone.add("Pay the rent");
  await eventually(async () => assert.equal(network.lostAnswers, 0));
  network.isDown = true;
  await task.incrementalPatch({ description: "by Monday" });
  network.isDown = false;
  await phone.replication.pause();
  await agreed(laptop);
  await (await find(laptop, "Pay the rent")).patch({ title: "Pay the baker" });
  await agreed(laptop);
  await phone.replication.start();
  const held = await agreed(phone, laptop);
  assert.deepEqual(held.map(({ title, description }) => [title, description]), [["Pay the baker", "by Monday"]]);
  assert.deepEqual([phone.conflicts, laptop.conflicts], [[], []]);
});

test("a change that the service refuses is told, and does not hold up the others", async () => {
  await phone.add("Buy milk");
  await agreed(phone, laptop);
  await (await find(phone, "Buy milk")).patch({ title: " " });
  await phone.add("Call the bank");
  await eventually(async () => assert.deepEqual(titles(await tasksOfService()), ["Buy milk", "Call the bank"]));
  const told = phone.conflicts.map(({ reason, mine }) => [reason, mine.title]);
  assert.deepEqual(told, [["Title cannot be empty", " "]]);
  await (await find(phone, " ")).patch({ title: "Buy bread" });
  assert.deepEqual(titles(await agreed(phone, laptop)), ["Buy bread", "Call the bank"]);
});

test("a create that the service refuses is told, and does not hold up the others", async () => {
  const task = await phone.add(" ");
  await phone.add("Call the bank");
  await eventually(async () => assert.deepEqual(titles(await tasksOfService()), ["Call the bank"]));
  await agreed(laptop);
  assert.deepEqual(phone.conflicts.map(({ reason }) => reason), ["Title cannot be empty"]);
  await task.getLatest().remove();
  assert.deepEqual(titles(await agreed(phone, laptop)), ["Call the bank"]);
});

test("a client that was closed goes on where it was", async () => {
  await phone.add("Buy milk");
  await agreed(phone, laptop);
  network.isDown = true;
  await phone.add("Written before the end");
  await (await find(phone, "Buy milk")).patch({ title: "Buy bread" });
  await phone.database.close();
  network.isDown = false;
  network.log.length = 0;
  phone = await openPhone();
  assert.deepEqual(titles(await agreed(phone, laptop)), ["Buy bread", "Written before the end"]);
  assert.deepEqual([phone.conflicts, laptop.conflicts], [[], []]);
});

test("quick edits of one task arrive in their order", async () => {
  const task = await phone.add("Buy milk");
  for (let turn = 0; turn < 20; turn++) {
    await task.incrementalPatch({ status: turn % 2 ? "incomplete" : "complete", description: `turn ${turn}` });
    await sleep(turn % 7);
  }
  const held = await agreed(phone, laptop);
  assert.deepEqual(held.map(({ status, description }) => [status, description]), [["incomplete", "turn 19"]]);
  assert.deepEqual([phone.conflicts, laptop.conflicts], [[], []]);
});

test("an edit that undoes one whose answer was lost stays", async () => {
  const task = await phone.add("Buy milk");
  await agreed(phone, laptop);
  // A pull that waits to be tried again meets a push that waits too.
  phone.replication.retryTime = 300;
  network.isDown = true;
  phone.replication.reSync();
  await eventually(async () => assert.ok(phone.errors.length > 0));
  phone.replication.retryTime = 1500;
  network.isDown = false;
  network.lostAnswers = 1;
  await task.incrementalPatch({ status: "complete" });
  await eventually(async () => assert.equal(network.lostAnswers, 0));
  await task.incrementalPatch({ status: "incomplete" });
  network.log.length = 0;
  await eventually(async () => assert.ok(network.log.includes("GET changes 200")));
  await sleep(50);
  assert.equal((await tasksOfService())[0]?.status, "complete");
  phone.replication.retryTime = 30;
  await sleep(1500);
  const held = await agreed(phone, laptop);
  assert.deepEqual(held.map(({ status }) => status), ["incomplete"]);
});

test("a slow pull does not bring back what an edit has replaced", async () => {
  const task = await phone.add("Buy milk");
  await agreed(phone, laptop);
  const seen: string[] = [];
  const seeing = task.$.subscribe(({ title }) => seen.at(-1) === title || seen.push(title));
  network.slowness = 150;
  await task.incrementalPatch({ title: "Buy bread" });
  await eventually(async () => assert.ok(network.log.some((entry) => /^PUT \d+ 200$/.test(entry))));
  await sleep(50);
  await task.incrementalPatch({ title: "Buy butter" });
  await sleep(400);
  network.slowness = 0;
  await agreed(phone, laptop);
  seeing.unsubscribe();
  assert.deepEqual(seen, ["Buy milk", "Buy bread", "Buy butter"]);
});

test("whatever is lost on the way, no edit is, and all hold the same in the end", async () => {
  type Written = { title: string; description: string | null; status: string; isDeleted: boolean };
  const [created, expected]: [string[], Map<string, Written>] = [[], new Map()];
  const random = <T>(choices: T[]) => choices[Math.floor(Math.random() * choices.length)]!;
  network.faults = 0.2;
  for (let step = 0; step < 200; step++) {
    const client = random([phone, laptop]);
    const task = random(await client.tasks.find().exec()) ?? (await client.add(`first ${step}`));
    const { title } = task;
    const written = expected.get(title) ?? { title, description: null, status: "incomplete", isDeleted: false };
    const act = random(["add", "edit", "edit", "edit", "edit", "remove", "sync"]);
    if (act === "add") created.push((await client.add(`task ${step}`)).title);
    // Each field has one writer: else of two edits one would be told, and not stay.
    if (act === "edit" && client === phone) await task.incrementalPatch({ description: (written.description = `${step}`) });
    if (act === "edit" && client === laptop)
      await task.incrementalPatch({ status: (written.status = random(["complete", "incomplete"])) as Task["status"] });
    if (act === "remove" && step % 3 === 0) {
      await task.incrementalRemove();
      written.isDeleted = true;
    }
    if (act === "sync") client.replication.reSync();
    if (act === "edit" || act === "remove") expected.set(title, written);
    await sleep(Math.random() * 8);
  }
  network.faults = 0;
  const held = await agreed(phone, laptop);
  assert.deepEqual(titles(held).sort(), [...new Set(titles(held))].sort());
  for (const title of created)
    if (!expected.get(title)?.isDeleted) assert.ok(titles(held).includes(title), title);
  for (const { title, description, status } of held) {
    const written = expected.get(title!) ?? { description: null, status: "incomplete", isDeleted: false };
    if (written.isDeleted) continue; // An edit of the other client has stopped the deletion.
    assert.deepEqual({ title, description, status }, { title, description: written.description, status: written.status });
  }
  assert.deepEqual([...phone.conflicts, ...laptop.conflicts].filter(({ reason }) => reason !== "deleted"), []);
});

test("a thousand tasks and more are brought at once", async () => {
  flask("seed", USER, "--count", "1500");
  const counts = new Set<number>();
  const counting = laptop.tasks.count().$.subscribe((count) => counts.add(count));
  assert.equal((await agreed(phone, laptop)).length, 1500);
  counting.unsubscribe();
  assert.deepEqual([...counts], [0, 1500]);
});
