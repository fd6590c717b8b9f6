/** A heat map on a canvas: one column for each step, one row for each unit. A text beside it shows the value under the
 * pointer, or under a cursor that the arrow keys move. */

import { colour, freshId, h, onTheme, say } from "./dom";

/** The content of a heat map. columns: null for an unknown column. labels: one for each column. columnIs: whether a label
 * names the column's step, or the token after it. rows: the names of the rows, or the word for a row. */
export interface Picture {
  columns: (readonly number[] | null)[];
  labels: string[];
  columnIs: "step" | "before";
  rows: string[] | string;
  isSigned: boolean;
}

const MIN_COLUMNS = 24;
/** The most letters of a column's name that are written horizontally; longer names are written vertically. */
const MAX_LABEL = 4;
type Rgb = [number, number, number];

/** A heat map with a title. */
export class HeatMap {
  readonly element: HTMLElement;
  private readonly canvas: HTMLCanvasElement;
  private readonly scale = h("span", { class: "muted" });
  private readonly told = h("output", { class: "tip" });
  private readonly rowNames = h("div", { class: "row-names", "aria-hidden": "true" });
  private readonly columnNames = h("div", { class: "column-names", "aria-hidden": "true" });
  private picture: Picture = { columns: [], labels: [], columnIs: "step", rows: "unit", isSigned: false };
  private cursor: [number, number] = [0, 0];

  constructor(private readonly title: string, private readonly isNamed = false) {
    const name = freshId("map");
    this.canvas = h("canvas", { role: "img", tabindex: 0, "aria-labelledby": name });
    const caption = h("figcaption", {}, [h("span", { id: name }, [title]), this.scale]);
    const map = h("div", { class: isNamed ? "map named" : "map" }, [this.rowNames, this.canvas, this.columnNames]);
    this.element = h("figure", {}, [caption, map, this.told]);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.hide());
    this.canvas.addEventListener("blur", () => this.hide());
    this.canvas.addEventListener("keydown", (event) => this.move(event));
    onTheme(() => this.paint());
  }

  /** Replaces the picture. */
  draw(picture: Picture): void {
    this.picture = picture;
    this.hide();
    this.paint();
  }

  private get numRows(): number {
    return this.picture.columns.find((column) => column !== null)?.length ?? 0;
  }

  private paint(): void {
    const { columns, isSigned } = this.picture;
    const numRows = this.numRows;
    const numColumns = this.isNamed ? columns.length : Math.max(MIN_COLUMNS, columns.length);
    if (numRows === 0) {
      this.canvas.width = this.canvas.height = 1;
      return;
    }
    const most = isSigned ? largest(columns) : 1;
    say(this.scale, isSigned ? `±${most.toPrecision(2)}` : "0 to 1");
    this.canvas.width = numColumns;
    this.canvas.height = numRows;
    const context = this.canvas.getContext("2d");
    if (!context) return;
    const [zero, high, low] = [rgb("--heat-zero"), rgb("--heat-high"), rgb("--heat-low")];
    const image = context.createImageData(numColumns, numRows);
    for (let column = 0; column < numColumns; column += 1) {
      for (let row = 0; row < numRows; row += 1) {
        const value = (columns[column]?.[row] ?? 0) / most;
        const end = value < 0 ? low : high;
        const share = Math.min(1, Math.abs(value));
        const at = 4 * (row * numColumns + column);
        for (let part = 0; part < 3; part += 1) {
          image.data[at + part] = (zero[part] ?? 0) + share * ((end[part] ?? 0) - (zero[part] ?? 0));
        }
        image.data[at + 3] = column < columns.length && columns[column] ? 255 : 0;
      }
    }
    context.putImageData(image, 0, 0);
    if (this.isNamed) this.name(numColumns, numRows);
  }

  private name(numColumns: number, numRows: number): void {
    const { rows, labels } = this.picture;
    this.canvas.style.width = `${2.25 * numColumns}rem`;
    this.canvas.style.height = `${1.25 * numRows}rem`;
    this.rowNames.replaceChildren(...(Array.isArray(rows) ? rows : []).map((row) => h("span", {}, [row])));
    this.columnNames.classList.toggle("is-long", labels.some((label) => label.length > MAX_LABEL));
    this.columnNames.replaceChildren(...labels.map((label) => h("span", {}, [label])));
  }

  private point(event: PointerEvent): void {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * this.canvas.width);
    const row = Math.floor(((event.clientY - box.top) / box.height) * this.canvas.height);
    this.tell(column, row);
  }

  private move(event: KeyboardEvent): void {
    const steps: Record<string, [number, number]> = {
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
    };
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const [column, row] = this.cursor;
    const last = this.picture.columns.length - 1;
    this.tell(Math.max(0, Math.min(last, column + step[0])), Math.max(0, Math.min(this.numRows - 1, row + step[1])));
  }

  private tell(column: number, row: number): void {
    const { columns, labels, columnIs, rows } = this.picture;
    const value = columns[column]?.[row];
    if (value === undefined) {
      this.hide();
      return;
    }
    this.cursor = [column, row];
    const name = Array.isArray(rows) ? `“${rows[row] ?? ""}”` : `${rows} ${row}`;
    say(this.told, `${this.title}, ${columnIs} “${labels[column] ?? ""}”, ${name}: ${value.toFixed(3)}`);
    this.told.classList.add("is-shown");
  }

  private hide(): void {
    this.told.classList.remove("is-shown");
  }
}

function largest(columns: Picture["columns"]): number {
  let most = 1e-6;
  for (const column of columns) for (const value of column ?? []) most = Math.max(most, Math.abs(value));
  return most;
}

function rgb(name: string): Rgb {
  const number = parseInt(colour(name).slice(1), 16);
  return [(number >> 16) & 255, (number >> 8) & 255, number & 255];
}
