// The looks of what stands in nodes; colours follow the page's theme, dark or light.

const CSS = `
.safety-direction { box-sizing: border-box; font: 12px/1.45 system-ui, sans-serif; color: var(--input-text, #ddd); overflow: auto; height: 100%; }
.safety-direction .faint { color: var(--descrip-text, #999); }
.safety-direction .row { display: flex; flex-wrap: wrap; gap: 4px; align-items: center; }
.safety-direction .facts { display: grid; grid-template-columns: auto 1fr; gap: 1px 10px; padding: 2px 4px; }
.safety-direction .bad { color: #f26d6d; padding: 2px 4px; }
.safety-direction button { font: inherit; color: inherit; border: 1px solid var(--border-color, #555); border-radius: 10px; padding: 0 8px; line-height: 18px;
  background: var(--comfy-input-bg, #222); cursor: pointer; }
.safety-direction button:hover { border-color: currentColor; }
.safety-direction button[aria-pressed="true"] { background: #2f7d54; border-color: #2f7d54; color: #fff; }
.safety-direction .pill { border-radius: 9px; padding: 0 8px; line-height: 18px; font-weight: 600; color: #fff; background: #2f7d54; }
.safety-direction .pill.over { background: #c93a3a; }
.safety-direction .score { font-size: 15px; font-weight: 600; }
.safety-direction .score.over { color: #e04848; }
.safety-direction h6 { font: inherit; margin: 6px 0 3px; color: var(--descrip-text, #999); }
.safety-direction .words { display: flex; flex-wrap: wrap; gap: 3px; }
.safety-direction .words span { border-radius: 4px; padding: 0 5px; line-height: 20px; white-space: nowrap; max-width: 100%; overflow: hidden; text-overflow: ellipsis; }
.safety-direction table { border-spacing: 0 2px; width: 100%; margin-top: 6px; }
.safety-direction td { padding: 0 6px 0 0; white-space: nowrap; }
.safety-direction td:nth-child(2) { width: 99%; }
.safety-direction td:last-child { text-align: right; padding: 0; }
.safety-direction tr.chosen td:first-child { font-weight: 600; }
.safety-direction svg { display: block; width: 100%; height: 14px; }
`;

const MARGIN = 5; // around a panel, in pixels

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made && name !== "style") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

export function addStyle() {
  document.head.append(element("style", { textContent: CSS }));
}

/** An element in a node that is no input of it: not sent, not saved. It is as high as what is in it. */
export function addPanel(node, name) {
  const body = element("div", { className: "body" });
  const panel = element("div", { className: "safety-direction" }, body);
  let height = 28;
  const added = node.addDOMWidget(name, "safety_direction", panel, { serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight: () => height, getMaxHeight: () => height });
  added.serialize = false;
  const fit = () => {
    const wanted = body.offsetHeight + 2 * MARGIN + 2;
    if (!body.offsetHeight || Math.abs(wanted - height) < 3) return;
    const grows = wanted > height;
    height = wanted;
    const least = node.computeSize()[1];
    if (least > node.size[1] || !grows) node.setSize([node.size[0], least]);
    node.graph?.setDirtyCanvas(true, true);
  };
  const observer = new ResizeObserver(() => requestAnimationFrame(fit));
  observer.observe(body);
  return { show: (...children) => body.replaceChildren(...children), close: () => observer.disconnect() };
}
