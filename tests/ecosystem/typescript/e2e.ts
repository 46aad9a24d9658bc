/** What docs/front-ends.md shows, and all six calls, against a live service that believes a live Better Auth. */

import assert from "node:assert/strict";
import { before, test } from "node:test";

// First: what comes after takes fetch as it finds it.
import { cookieHeader, cookies, faults, sent } from "./browser";
import { GET as tasksOnTheServer } from "./app/api/tasks/route";
import { authClient } from "./lib/auth-client";
import { allTasks, change, create, etagOf, granted, Refused, remove, toggle } from "./lib/tasks";
import { forgetToken, todo } from "./lib/todo";
import type { components, operations } from "./lib/todo-api";

type Task = components["schemas"]["Task"];
type OutputOnly = "id" | "user_id" | "created_at" | "updated_at";
type Ignored = { readonly [name in OutputOnly]?: unknown };
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;

/** What the types must come out as, exactly: this holds or does not compile. */
const typesAreTrue: [
  Same<Task["id"], number>,
  Same<Task["status"], "incomplete" | "complete">,
  Same<Task["description"], string | null>,
  Same<Task, Required<Task>>,
  Same<Omit<components["schemas"]["NewTask"], OutputOnly>, { title: string; description?: string | null }>,
  Same<Pick<components["schemas"]["NewTask"], OutputOnly>, Ignored>,
  Same<Omit<components["schemas"]["TaskChanges"], OutputOnly>, Partial<Omit<Task, OutputOnly>>>,
  Same<Pick<components["schemas"]["TaskChanges"], OutputOnly>, Ignored>,
  Same<components["schemas"]["TaskCompletion"], Pick<Task, "status">>,
  Same<components["schemas"]["ApiError"], { error: string }>,
  Same<components["schemas"]["Readiness"]["status"], "ok">,
  Same<operations["getTask"]["parameters"]["path"], { user_id: string; task_id: number }>,
] = [true, true, true, true, true, true, true, true, true, true, true, true];

async function signUp(name: string): Promise<string> {
  cookies.clear();
  forgetToken();
  const account = { name, email: `${name}@app.example`, password: "correct horse" };
  const { data, error } = await authClient.signUp.email(account);
  assert.ok(data, JSON.stringify(error));
  return data.user.id;
}

function refused(status: number, message: string): (error: unknown) => boolean {
  return (error) => error instanceof Refused && error.status === status && error.message === message;
}

async function collected(tasks: AsyncIterable<Task>): Promise<Task[]> {
  const found: Task[] = [];
  for await (const task of tasks) found.push(task);
  return found;
}

let alice = "";
before(async () => void (alice = await signUp("alice")));

test("the types are true", () => assert.ok(typesAreTrue.every(Boolean)));

test("a task goes through the six calls", async () => {
  const { data: task } = await create(alice, crypto.randomUUID(), { title: "Buy milk" });
  assert.deepEqual([task.user_id, task.title, task.description, task.status], [alice, "Buy milk", null, "incomplete"]);
  const params = { path: { user_id: alice, task_id: task.id } };
  const seen = await granted(todo.GET("/api/{user_id}/tasks/{task_id}", { params }));
  assert.deepEqual(seen, { data: task, next: null });
  const { data: described } = await change(task, { description: "Two litres" });
  assert.equal(described.description, "Two litres");
  const { data: cleared } = await change(described, { description: null });
  assert.equal(cleared.description, null);
  const { data: turned } = await toggle(task);
  assert.equal(turned.status, "complete");
  const body = { status: "complete" as const };
  const { data: set } = await granted(todo.PATCH("/api/{user_id}/tasks/{task_id}/complete", { params, body }));
  assert.equal(set.status, "complete");
  const path = { user_id: alice };
  const { data: listed } = await granted(todo.GET("/api/{user_id}/tasks", { params: { path, query: { q: "MILK" } } }));
  assert.deepEqual(listed, [set]);
  assert.equal((await remove(task)).data, undefined);
  await assert.rejects(granted(todo.GET("/api/{user_id}/tasks/{task_id}", { params })), refused(404, "Task not found"));
});

test("a task that was read can be sent back whole", async () => {
  const { data: task } = await create(alice, crypto.randomUUID(), { title: "Buy milk" });
  const edited: Task = { ...task, title: "Buy bread" };
  const { data: changed } = await change(task, edited);
  assert.deepEqual(changed, { ...edited, updated_at: changed.updated_at });
  const params = { path: { user_id: alice, task_id: task.id } };
  await granted(todo.DELETE("/api/{user_id}/tasks/{task_id}", { params }));
});

test("an error is typed, and says what is wrong", async () => {
  const params = { path: { user_id: alice } };
  const { data, error, response } = await todo.POST("/api/{user_id}/tasks", { params, body: { title: " " } });
  assert.deepEqual([data, response.status], [undefined, 400]);
  const message: string | undefined = error?.error;
  assert.equal(message, "Title cannot be empty");
  await assert.rejects(create(alice, "", { title: "Buy milk" }), (error: Refused) => error.status === 400);
});

test("what the document does not know does not compile", async () => {
  const path = { user_id: alice };
  // @ts-expect-error No such query parameter.
  await todo.GET("/api/{user_id}/tasks", { params: { path, query: { page: 2 } } });
  // @ts-expect-error No such status.
  await todo.GET("/api/{user_id}/tasks", { params: { path, query: { status: "done" } } });
  // @ts-expect-error A title is wanted.
  await todo.POST("/api/{user_id}/tasks", { params: { path }, body: {} });
  // @ts-expect-error And the owner.
  await todo.GET("/api/{user_id}/tasks", {}).catch(() => null);
});

test("a list is followed by its links to the end", async () => {
  const carol = await signUp("carol");
  for (let number = 1; number <= 25; number++) {
    await create(carol, `task-${number}`, { title: `Task ${number}` });
  }
  const found = await collected(allTasks(carol, { limit: 10, status: "incomplete" }));
  assert.deepEqual(found.map((task) => task.title), Array.from({ length: 25 }, (_, index) => `Task ${25 - index}`));
  const params = { path: { user_id: carol }, query: { limit: 10 } };
  const { data, next } = await granted(todo.GET("/api/{user_id}/tasks", { params }));
  assert.deepEqual([data.length, next === null], [10, false]);
});

test("what was changed since is not overwritten", async () => {
  const dave = await signUp("dave");
  const { data: task } = await create(dave, "first", { title: "Call the bank" });
  const { data: later } = await change(task, { title: "Call the bank at nine" });
  const message = "Precondition failed: the resource has been changed since, get it again";
  await assert.rejects(change(task, { title: "Call the bank at ten" }), refused(412, message));
  const [listed] = await collected(allTasks(dave));
  assert.deepEqual(listed, later);
  const { data: done } = await change(listed!, { status: "complete" });
  assert.equal(done.title, "Call the bank at nine");
  const params = { path: { user_id: dave, task_id: task.id }, header: { "If-None-Match": etagOf(done) } };
  const { response } = await todo.GET("/api/{user_id}/tasks/{task_id}", { params });
  assert.deepEqual([response.status, response.headers.get("ETag")], [304, etagOf(done)]);
});

test("a create that is tried again makes nothing twice", async () => {
  const erin = await signUp("erin");
  const first = await create(erin, "key", { title: "Pay the rent" });
  assert.deepEqual(await create(erin, "key", { title: "Pay the rent" }), first);
  assert.deepEqual(await collected(allTasks(erin)), [first.data]);
  const message = "Idempotency-Key was used before, for another request";
  await assert.rejects(create(erin, "key", { title: "Pay the baker" }), refused(422, message));
});

test("nobody sees a task of another", async () => {
  const frank = await signUp("frank");
  const { data: task } = await create(frank, "key", { title: "Private" });
  const grace = await signUp("grace");
  const get = (user_id: string) =>
    granted(todo.GET("/api/{user_id}/tasks/{task_id}", { params: { path: { user_id, task_id: task.id } } }));
  await assert.rejects(get(frank), refused(403, "Forbidden"));
  await assert.rejects(get(grace), refused(404, "Task not found"));
  cookies.clear();
  assert.equal((await collected(allTasks(grace))).length, 0);
  forgetToken();
  await assert.rejects(collected(allTasks(grace)), refused(401, "Unauthorized"));
});

test("whoever has no token may ask how the service is", async () => {
  const { data } = await granted(todo.GET("/health/ready"));
  assert.equal(data.status, "ok");
  assert.ok(["enforced", "none"].includes(data.row_level_security));
});

test("a toggle turns the status over, each time", async () => {
  const judy = await signUp("judy");
  const { data: task } = await create(judy, crypto.randomUUID(), { title: "Buy milk" });
  assert.deepEqual([(await toggle(task)).data.status, (await toggle(task)).data.status], ["complete", "incomplete"]);
  await remove(task);
  await assert.rejects(remove(task), refused(404, "Task not found"));
});

test("calls that start together share one request for a token", async () => {
  const kate = await signUp("kate");
  sent.length = 0;
  await Promise.all([1, 2, 3, 4, 5].map(() => collected(allTasks(kate))));
  assert.deepEqual(sent, ["GET token", ...Array<string>(5).fill("GET tasks")]);
});

test("a token that is refused is replaced, and the call sent again with its body", async () => {
  const leo = await signUp("leo");
  await collected(allTasks(leo));
  sent.length = 0;
  faults.tokens = 1;
  const { data: task } = await create(leo, crypto.randomUUID(), { title: "Buy milk" });
  assert.equal(task.title, "Buy milk");
  assert.deepEqual(sent, ["POST tasks", "GET token", "POST tasks"]);
  await remove(task);
});

test("calls that are refused together share the new token", async () => {
  const mary = await signUp("mary");
  await collected(allTasks(mary));
  sent.length = 0;
  faults.tokens = 3;
  await Promise.all([1, 2, 3].map(() => collected(allTasks(mary))));
  assert.equal(sent.filter((request) => request === "GET token").length, 1);
  assert.equal(sent.filter((request) => request === "GET tasks").length, 6);
});

test("a call that is refused again is not sent a third time", async () => {
  const nick = await signUp("nick");
  await collected(allTasks(nick));
  sent.length = 0;
  faults.tokens = 2;
  await assert.rejects(collected(allTasks(nick)), refused(401, "Unauthorized"));
  assert.deepEqual(sent, ["GET tasks", "GET token", "GET tasks"]);
  await collected(allTasks(nick));
});

test("whoever is signed out is refused at once, and not for longer than that", async () => {
  const olga = await signUp("olga");
  const kept = [...cookies];
  cookies.clear();
  sent.length = 0;
  await assert.rejects(collected(allTasks(olga)), refused(401, "Unauthorized"));
  assert.deepEqual(sent, ["GET token", "GET tasks"]);
  for (const [name, value] of kept) cookies.set(name, value);
  await collected(allTasks(olga));
});

test("a request for a token that fails is not kept", async () => {
  const paul = await signUp("paul");
  sent.length = 0;
  faults.connections = 1;
  await assert.rejects(collected(allTasks(paul)), TypeError);
  assert.deepEqual(sent, ["GET token"]);
  await collected(allTasks(paul));
});

test("the server calls as the user whose request it serves", async () => {
  const heidi = await signUp("heidi");
  await create(heidi, "key", { title: "Heidi's" });
  const asHeidi = { headers: { Cookie: cookieHeader() } };
  const ivan = await signUp("ivan");
  await create(ivan, "key", { title: "Ivan's" });
  const asIvan = { headers: { Cookie: cookieHeader() } };
  const answers = [asHeidi, asIvan, asHeidi, {}].map(async (init) => {
    const response = await tasksOnTheServer(new Request("http://app.example/api/tasks", init));
    const body: Task[] | { error: string } = await response.json();
    return [response.status, ...(Array.isArray(body) ? body.map((task) => task.title) : [body.error])];
  });
  const heidis = [200, "Heidi's"];
  assert.deepEqual(await Promise.all(answers), [heidis, [200, "Ivan's"], heidis, [401, "Unauthorized"]]);
});
