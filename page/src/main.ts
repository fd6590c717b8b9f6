/** The page: the choice of a model, the token, and the columns. The address has the sessions' ids, so that a reload finds
 * them. */

import { Column, type Host } from "./column";
import { button, fill, h, say } from "./dom";
import { type ModelInfo, ModelStatus } from "./gen/carousel/v1/models_pb";
import { isRefusal, Server, type Watch, words } from "./server";
import { stored } from "./steps";
import { Code } from "@connectrpc/connect";

/** Returns the element with an id in index.html. */
function found<T extends HTMLElement>(id: string): T {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`index.html has no #${id}`);
  return element as T;
}

class Page implements Host, Watch {
  private readonly server = new Server((why) => this.askToken(why));
  private readonly modelChoice = found<HTMLSelectElement>("model");
  private readonly versionChoice = found<HTMLSelectElement>("version");
  private readonly about = found("about");
  private readonly notice = found("notice");
  private readonly columns = found("columns");
  private models: ModelInfo[] = [];
  private shown: Column[] = [];

  async start(): Promise<void> {
    this.modelChoice.addEventListener("change", () => this.chosen(0));
    this.versionChoice.addEventListener("change", () => this.chosen(Number(this.versionChoice.value)));
    addEventListener("hashchange", () => location.reload()); // the user changed the address: the page's own changes raise no event
    addEventListener("pagehide", () => this.shown.forEach((column) => column.session.keep(true)));
    try {
      const { answer } = await this.server.call((options) => this.server.models.list({}, options), "", this);
      this.models = answer.models.filter((model) => model.status === ModelStatus.SERVING);
      this.failed(answer.models.filter((model) => model.status !== ModelStatus.SERVING));
    } catch (error) {
      this.say(words(error));
      return;
    }
    if (this.models.length === 0) {
      this.say("No model is served.");
      return;
    }
    found("choice").hidden = false;
    const names = [...new Set(this.models.map(({ model }) => model))];
    fill(this.modelChoice, names.map((name) => h("option", { value: name }, [name])));
    if (!(await this.resume())) this.choose(this.first());
  }

  async fork(column: Column): Promise<void> {
    const other = new Column(column.model, this.server, this, true);
    const copy = await column.session.fork(other);
    this.drop(this.shown[1]);
    other.show(copy);
    this.lay([column, other]);
    other.focus();
  }

  close(column: Column): void {
    this.drop(column);
    this.lay(this.shown.filter((one) => one !== column));
    this.shown[0]?.focus();
  }

  renamed(): void {
    const ids = this.shown.filter(({ session }) => session.isOpen).map(({ session }) => session.id);
    const hash = ids.length > 0 ? `#${ids.join(",")}` : "";
    if (location.hash !== hash) history.replaceState(null, "", hash || location.pathname);
  }

  waiting(attempt: number, why: string, now: () => void): void {
    const text = `Not connected: ${why}. Trying again${attempt > 1 ? ` (${attempt})` : ""} …`;
    fill(this.notice, [text, " ", button("Try now", now)]);
  }

  answered(): void {
    this.say("");
  }

  private async resume(): Promise<boolean> {
    const ids = location.hash.slice(1).split(",").filter((id) => /^[\w.:-]{1,128}$/.test(id)).slice(0, 2);
    for (const [index, id] of ids.entries()) {
      const kept = stored(id);
      const model = kept ? this.find(kept.model, kept.version) : await this.modelOf(id);
      if (!model) continue;
      const column = new Column(model, this.server, this, index > 0);
      if (index === 0) this.select(model);
      this.lay([...this.shown, column]);
      await column.resume(id, kept);
    }
    return this.shown.length > 0;
  }

  /** Returns the model of a session that the tab does not know; undefined if the server does not have the session. */
  private async modelOf(id: string): Promise<ModelInfo | undefined> {
    try {
      const ask = this.server.call((options) => this.server.inference.step({ sessionId: id }, options), id, this);
      const { answer } = await ask;
      return this.find(answer.opened?.model ?? "", answer.opened?.version ?? 0);
    } catch (error) {
      if (!isRefusal(error, Code.NotFound, Code.FailedPrecondition)) throw error;
      this.say(`The session in this page's address cannot be shown: ${words(error)}`);
      return undefined;
    }
  }

  private find(model: string, version: number): ModelInfo | undefined {
    return this.models.find((one) => one.model === model && one.version === version);
  }

  private newest(name: string): ModelInfo | undefined {
    return this.models.filter(({ model }) => model === name).at(-1);
  }

  /** The model that is shown first: one with typed characters, if there is one. */
  private first(): ModelInfo | undefined {
    const isTyped = (one: ModelInfo) => one.tokenizer === "characters" && !one.hasEncoder;
    return this.newest((this.models.find(isTyped) ?? this.models[0])?.model ?? "");
  }

  private chosen(version: number): void {
    const name = this.modelChoice.value;
    this.say("");
    this.choose(version ? this.find(name, version) : this.newest(name));
  }

  private choose(model: ModelInfo | undefined): void {
    if (!model) return;
    for (const column of this.shown) this.drop(column);
    this.select(model);
    const column = new Column(model, this.server, this, false);
    this.lay([column]);
    if (!model.hasEncoder) void column.act(() => column.open(null));
  }

  private select(model: ModelInfo): void {
    this.modelChoice.value = model.model;
    const versions = this.models.filter((one) => one.model === model.model).reverse();
    fill(this.versionChoice, versions.map(({ version }) => h("option", { value: version }, [String(version)])));
    this.versionChoice.value = String(model.version);
    say(this.about, model.description);
  }

  private lay(columns: Column[]): void {
    this.shown = columns;
    this.columns.classList.toggle("is-pair", columns.length > 1);
    for (const element of [...this.columns.children]) {
      if (!columns.some((column) => column.element === element)) element.remove();
    }
    for (const column of columns) if (!column.element.isConnected) this.columns.append(column.element);
    this.renamed();
  }

  private drop(column: Column | undefined): void {
    column?.close();
  }

  private failed(models: ModelInfo[]): void {
    const lines = models.map(({ model, version, problem }) => `${model} version ${version} is not served: ${problem}`);
    this.say(lines.join(" "));
  }

  private say(text: string): void {
    fill(this.notice, [text]);
  }

  private askToken(why: string): Promise<string> {
    const [form, field] = [found<HTMLFormElement>("token-form"), found<HTMLInputElement>("token")];
    say(found("token-problem"), why);
    form.hidden = false;
    field.value = "";
    field.focus();
    return new Promise((resolve) => {
      form.onsubmit = (event) => {
        event.preventDefault();
        const token = field.value.trim();
        if (token === "") return;
        form.hidden = true;
        field.value = "";
        resolve(token);
      };
    });
  }
}

void new Page().start();
