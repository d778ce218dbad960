// This session's pictures: thumbnails that bring back what they were made with.

const MOST = 24;

/** Pairs of pictures, the latest first; the oldest go when there are too many. */
export class History {
  /**
   * @param {HTMLElement} section is hidden while there are none.
   * @param {HTMLElement} list gets the thumbnails.
   * @param {function} chosen is called with an entry that was clicked.
   * @param {function} inUse says whether a result that goes is still shown.
   */
  constructor(section, list, chosen, inUse) {
    Object.assign(this, { section, list, chosen, inUse, entries: [] });
  }

  /** Add `{ungated, gated}`, results of which one may be null. */
  add(entry) {
    this.entries.unshift(entry);
    this.list.prepend(this.#thumbnail(entry));
    while (this.entries.length > MOST) {
      const gone = this.entries.pop();
      this.list.lastElementChild.remove();
      for (const result of [gone.ungated, gone.gated]) if (result) this.#release(result);
    }
    this.section.hidden = false;
  }

  /** Free a picture's memory, unless somebody shows it. */
  #release(result) {
    const others = this.entries.some(each => each.ungated === result || each.gated === result);
    if (!others && !this.inUse(result)) URL.revokeObjectURL(result.url);
  }

  #thumbnail(entry) {
    const result = entry.gated ?? entry.ungated;
    const said = entry.gated ? `gate ${result.gate.gate_step}` : "no gate";
    const image = new Image();
    image.src = result.url;
    image.alt = "";
    if (Math.max(result.width, result.height) < 128) image.className = "small";
    const text = document.createElement("span");
    text.textContent = said;
    const button = document.createElement("button");
    button.type = "button";
    button.title = result.settings.prompt;
    button.setAttribute("aria-label", `${said}, seed ${result.settings.seed}: ${result.settings.prompt}`);
    button.append(image, text);
    button.addEventListener("click", () => this.chosen(entry));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }
}
