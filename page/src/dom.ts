/** Makes elements. Knows nothing of sessions. */

type Child = Node | string | null | undefined | false;
type Handlers = { [name in keyof HTMLElementEventMap]?: (event: HTMLElementEventMap[name]) => void };
type Attributes = { [name: string]: string | number | boolean | null | undefined };

/** An element. attributes: true is an attribute without a value; false, null and undefined are none. */
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

/** A button that submits nothing. */
export function button(label: string, press: () => void, attributes: Attributes = {}): HTMLButtonElement {
  return h("button", { type: "button", ...attributes }, [label], { click: press });
}

/** Gives an element these children and no others, if they are not its already. */
export function fill(element: Element, children: Child[]): void {
  element.replaceChildren(...children.filter((child): child is Node | string => Boolean(child)));
}

/** Sets a text where it differs, so that what is read aloud is read once. */
export function say(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

/** Lets Enter send the form that a text is in; with Shift it begins a line. */
export function onEnter(text: HTMLTextAreaElement): void {
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    text.form?.requestSubmit();
  });
}

let made = 0;

/** An id that no other element has. */
export function freshId(prefix: string): string {
  made += 1;
  return `${prefix}-${made}`;
}

/** Calls back when the page turns light or dark. */
export function onTheme(changed: () => void): void {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}

/** A colour of the style sheet, such as `--text`. */
export function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
