// One question to several models, a column for each. What a person or a model says is put in as text, never as HTML.
// Nothing is kept but in this page: not the token, not what was said.

const byId = (id) => document.getElementById(id);
const COMPLETIONS = new URL("v1/chat/completions", document.baseURI);
const NEAR_THE_END = 40; // pixels: who has scrolled up further is left there
const COPIED_MILLISECONDS = 2000;

let token = "";
let tokenAsked = null; // a promise while the dialogue is open: one for all columns
let running = null; // an AbortController while models answer
let columns = [];

// ---- the server ----

/** Fetches from the server. Asks for the token where it wants one; throws if none is given. */
async function call(path, options = {}) {
  for (;;) {
    const used = token;
    const headers = { ...options.headers, ...(used ? { Authorization: `Bearer ${used}` } : {}) };
    const response = await reached(fetch(new URL(path, document.baseURI), { ...options, headers }));
    if (response.status !== 401) return response;
    if (used === token) await askForToken(used !== "");
  }
}

async function reached(fetched) {
  try {
    return await fetched;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
  }
}

function askForToken(refused) {
  tokenAsked ??= new Promise((resolve, reject) => {
    const [dialog, input] = [byId("token-dialog"), byId("token")];
    byId("token-refused").hidden = !refused;
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        tokenAsked = null;
        const given = dialog.returnValue === "given";
        if (given) token = input.value;
        input.value = "";
        if (given) resolve();
        else reject(new Error("The server wants its token."));
      },
      { once: true },
    );
    dialog.showModal();
  });
  return tokenAsked;
}

/** Returns what the server says of its error. */
async function problemOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server says ${response.status} ${response.statusText}.`; // a proxy before it, perhaps
  }
}

/** Yields the events of a stream, parsed. Throws the error that is one of them, or if the stream has no end. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reached(reader.read());
    if (done) throw new Error("The answer broke off.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice("data:".length).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

/** Yields what a model says: { delta, reason, usage }, each where there is one. */
async function* saidBy(request, signal) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const response = await call(COMPLETIONS, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body,
    signal,
  });
  if (!response.ok) throw new Error(await problemOf(response));
  for await (const { choices, usage } of eventsOf(response)) {
    const [choice] = choices;
    yield { delta: choice?.delta ?? {}, reason: choice?.finish_reason, usage };
  }
}

/** Returns the command that asks the same for a whole answer. The token stays where the shell has it. */
function curlOf(request) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  return [
    `curl ${quoted(COMPLETIONS.href)}`,
    "-H 'Content-Type: application/json'",
    ...(token ? ['-H "Authorization: Bearer $TURNWISE_SERVE_TOKEN"'] : []),
    `-d ${quoted(JSON.stringify(request))}`,
  ].join(" \\\n  ");
}

// ---- what is seen ----

function made(template) {
  return byId(template).content.firstElementChild.cloneNode(true);
}

/** A question and what one model says to it. */
class Turn {
  constructor(question, request) {
    this.element = made("turn");
    this.reply = { role: "assistant", content: "" };
    this.began = performance.now();
    this.words = new Text();
    this.find(".words").append(this.words);
    this.find(".question").textContent = question;
    this.find(".state").textContent = "answering …";
    this.find(".copy").addEventListener("click", () => copy(curlOf(request), this.find(".copy")));
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  add({ content, reasoning_content: reasoning, tool_calls: calls }) {
    if (content) {
      this.reply.content += content;
      this.words.appendData(content);
    }
    if (reasoning) {
      this.reply.reasoning_content = (this.reply.reasoning_content ?? "") + reasoning;
      this.find(".reasoning").hidden = false;
      this.find(".reasoning p").textContent = this.reply.reasoning_content;
    }
    for (const { index, ...call } of calls ?? []) {
      (this.reply.tool_calls ??= []).push(call);
      const item = document.createElement("li");
      item.textContent = `${call.function.name}(${call.function.arguments})`;
      this.find(".calls").append(item);
      this.find(".calls").hidden = false;
    }
  }

  get saysSomething() {
    return this.reply.content !== "" || this.reply.tool_calls !== undefined;
  }

  end(state) {
    this.find(".words").hidden = this.reply.content === "";
    this.find(".state").textContent = state;
  }

  finish(reason, tokens) {
    const seconds = ((performance.now() - this.began) / 1000).toFixed(1);
    const count = `${tokens.toLocaleString("en")} ${tokens === 1 ? "token" : "tokens"}`;
    this.end(reason === "length" ? `cut at ${count}, ${seconds} s` : `${count}, ${seconds} s`);
  }

  fail(message) {
    this.element.classList.add("failed");
    this.find(".error").textContent = message;
    this.find(".error").hidden = false;
    this.end(this.saysSomething ? "broken off" : "not answered");
  }
}

/** A model, and its own conversation. */
class Column {
  constructor(name) {
    this.name = name;
    this.history = [];
    this.element = made("column");
    this.element.setAttribute("aria-label", name);
    this.log = this.element.querySelector(".log");
    this.log.setAttribute("aria-label", `What ${name} says`);
    this.atEnd = true; // of what there is to read
    this.log.addEventListener("scroll", () => {
      this.atEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < NEAR_THE_END;
    });
    new ResizeObserver(() => this.show(() => {})).observe(this.log);
    this.element.querySelector(".name").textContent = name;
    const choice = made("choice");
    choice.querySelector("span").textContent = name;
    this.box = choice.querySelector("input");
    this.box.addEventListener("change", () => {
      this.element.hidden = !this.box.checked;
    });
    byId("models").append(choice);
    byId("columns").append(this.element);
  }

  /** Shows which version it is, and why a newer one does not serve. */
  know({ source, version, problem }) {
    this.element.querySelector(".facts").textContent = version ? `version ${version}` : source;
    this.element.querySelector(".facts").title = source;
    this.element.querySelector(".problem").textContent = problem ?? "";
    this.element.querySelector(".problem").hidden = !problem;
  }

  /** Asks, and shows what comes. Returns whether the question became part of the conversation. */
  async ask(question, { system, ...options }, signal) {
    const { history } = this; // after a reset there is another one
    const asked = { role: "user", content: question };
    const before = system ? [{ role: "system", content: system }] : [];
    const request = { model: this.name, messages: [...before, ...history, asked], ...options };
    const turn = new Turn(question, request);
    this.atEnd = true;
    this.show(() => this.log.append(turn.element));
    this.log.setAttribute("aria-busy", "true"); // read aloud when it is whole
    let reason, usage;
    try {
      for await (const part of saidBy(request, signal)) {
        reason = part.reason ?? reason;
        usage = part.usage ?? usage;
        this.show(() => turn.add(part.delta));
      }
      this.show(() => turn.finish(reason, usage.completion_tokens));
    } catch (error) {
      this.show(() => (signal.aborted ? turn.end("stopped") : turn.fail(error.message)));
      if (!signal.aborted || !turn.saysSomething) return false;
    } finally {
      this.log.removeAttribute("aria-busy");
    }
    history.push(asked, turn.reply);
    return true;
  }

  /** Changes what is shown. Stays at the end of it, if that is where its reader is. */
  show(change) {
    const stays = this.atEnd;
    change();
    if (stays) this.log.scrollTop = this.log.scrollHeight;
  }

  reset() {
    this.history = [];
    this.log.replaceChildren();
  }
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    byId("copy-text").value = text;
    byId("copy-dialog").showModal();
    byId("copy-text").select();
    return;
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy as curl"), COPIED_MILLISECONDS);
}

function notice(message, canTryAgain = false) {
  byId("notice").hidden = !message;
  byId("notice").querySelector("span").textContent = message;
  byId("notice").querySelector("button").hidden = !canTryAgain;
}

// ---- what a person does ----

function settings() {
  return {
    system: byId("system").value.trim(),
    temperature: byId("temperature").valueAsNumber,
    max_tokens: byId("max-tokens").valueAsNumber,
  };
}

function summarize() {
  const { system, temperature, max_tokens: most } = settings();
  const parts = [`temperature ${temperature}`, `at most ${most} tokens`, ...(system ? ["a system prompt"] : [])];
  byId("summary").textContent = byId("ask").checkValidity() ? parts.join(", ") : "";
}

async function ask() {
  const question = byId("question");
  const text = question.value;
  const chosen = columns.filter((column) => column.box.checked);
  if (running || !text.trim()) return;
  if (!chosen.length) {
    notice("Choose at least one model.");
    return;
  }
  notice("");
  question.value = "";
  const mine = (running = new AbortController());
  showRunning();
  learnVersions();
  const taken = await Promise.all(chosen.map((column) => column.ask(text, settings(), mine.signal)));
  if (running !== mine) return; // reset meanwhile
  running = null;
  showRunning();
  if (!taken.includes(true) && !question.value) question.value = text;
}

function stop() {
  running?.abort();
}

function reset() {
  stop();
  running = null;
  showRunning();
  notice("");
  for (const column of columns) column.reset();
  byId("question").focus();
}

function showRunning() {
  const [shown, hidden] = running ? [byId("stop"), byId("send")] : [byId("send"), byId("stop")];
  const hadFocus = document.activeElement === hidden;
  [shown.hidden, hidden.hidden] = [false, true];
  if (hadFocus) byId("question").focus();
}

/** Shows of each model which version it is now: an alias may have moved. */
async function learnVersions() {
  try {
    const { models } = await (await call("health")).json();
    for (const facts of models) columns.find((column) => column.name === facts.id)?.know(facts);
  } catch {
    // the answers say so if the server is away
  }
}

async function start() {
  notice("");
  try {
    const response = await call("v1/models");
    if (!response.ok) throw new Error(await problemOf(response));
    columns = (await response.json()).data.map((model) => new Column(model.id));
  } catch (error) {
    notice(error.message, true);
    return;
  }
  learnVersions();
  byId("question").focus();
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
byId("ask").addEventListener("input", summarize);
// A field in closed settings can show no complaint.
byId("settings").addEventListener("invalid", () => (byId("settings").open = true), { capture: true });
byId("question").addEventListener("keydown", (event) => {
  const composing = event.isComposing || event.keyCode === 229; // Enter chooses a word there; 229 is Safari's way to say so
  if (event.key !== "Enter" || event.shiftKey || composing) return;
  event.preventDefault();
  byId("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop();
});
byId("stop").addEventListener("click", stop);
byId("reset").addEventListener("click", reset);
byId("notice").querySelector("button").addEventListener("click", start);

summarize();
start();
