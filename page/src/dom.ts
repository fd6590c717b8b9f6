/** Makes HTML elements. Knows nothing of sessions. */

type Child = Node | string | null | undefined | false;
type Handlers = { [name in keyof HTMLElementEventMap]?: (event: HTMLElementEventMap[name]) => void };
type Attributes = { [name: string]: string | number | boolean | null | undefined };

/** Makes an element. attributes: true makes an attribute without a value; false, null and undefined make none. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  children: Child[] = [],
  on: Handlers = {},
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  for (const child of children) if (child) made.append(child);
  for (const [name, handler] of Object.entries(on)) made.addEventListener(name, handler as EventListener);
  return made;
}

/** Makes a button that does not submit a form. */
export function button(label: string, press: () => void, attributes: Attributes = {}): HTMLButtonElement {
  return h("button", { type: "button", ...attributes }, [label], { click: press });
}

/** Replaces the children of an element. */
export function fill(element: Element, children: Child[]): void {
  element.replaceChildren(...children.filter((child): child is Node | string => Boolean(child)));
}

/** Sets a text only if it differs, so that a screen reader reads it once. */
export function say(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

/** Makes Enter submit the form of a text box. Shift and Enter begin a new line. */
export function onEnter(text: HTMLTextAreaElement): void {
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    text.form?.requestSubmit();
  });
}

let made = 0;

/** Returns an id that no other element has. */
export function freshId(prefix: string): string {
  made += 1;
  return `${prefix}-${made}`;
}

/** Calls `changed` when the browser changes between the light and the dark theme. */
export function onTheme(changed: () => void): void {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}

/** Returns a colour of the style sheet. name: such as `--text`. */
export function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
