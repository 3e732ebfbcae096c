// What the page of the viewer can do beside viser's own: choose Gaussians by a box or a brush, divide the
// picture between before and after, open a file that is dropped, and count frames. It talks to
// viewer/pages.py by a socket of its own; viewer/messages.py says what is understood there. Without a ticket,
// in the page of a run, it only counts frames.
"use strict";

function startSplatdistill(ticket) {
  if (window.splatdistill) window.splatdistill.stop();  // an earlier connection's
  const chunk = 60000;  // bytes of a file in a message
  const gone = new AbortController();
  const listen = (target, name, act, capture = true) =>
    target.addEventListener(name, act, { capture, signal: gone.signal, passive: false });
  const state = { tool: "look", radius: 0.03, split: null };
  let points = null, uploading = null;

  // ---- what is drawn over the canvas ----

  const svgNames = "http://www.w3.org/2000/svg";
  const layer = document.createElement("div");
  layer.id = "splatdistill";
  layer.innerHTML = `
    <style>
      #splatdistill { position: fixed; pointer-events: none; z-index: 5; overflow: hidden;
        font: 13px/1.4 system-ui, sans-serif; color: #333; }
      #splatdistill svg { position: absolute; inset: 0; width: 100%; height: 100%; }
      #splatdistill .line { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px;
        background: #285aa0; cursor: ew-resize; pointer-events: auto; touch-action: none; }
      #splatdistill .line::before { content: ""; position: absolute; inset: 0 -9px; }
      #splatdistill .line::after { content: "\\2194"; position: absolute; top: 50%; left: -13px; width: 28px;
        height: 28px; margin-top: -14px; border-radius: 14px; background: #285aa0; color: white;
        text-align: center; line-height: 28px; }
      #splatdistill .side { position: absolute; top: 10px; padding: 1px 8px; border-radius: 4px;
        background: #fffc; }
      #splatdistill .frames { position: absolute; left: 10px; bottom: 8px; padding: 1px 8px;
        border-radius: 4px; background: #fffc; color: #666; font-variant-numeric: tabular-nums; }
      #splatdistill .drop { position: absolute; inset: 12px; display: flex; align-items: center;
        justify-content: center; border: 2px dashed #285aa0; border-radius: 8px; background: #fffd;
        font-size: 16px; color: #285aa0; }
      #splatdistill [hidden] { display: none; }
    </style>
    <svg aria-hidden="true"></svg>
    <div class="line" hidden></div><div class="side" hidden>before</div><div class="side" hidden>after</div>
    <div class="frames"></div><div class="drop" hidden></div>`;
  document.body.appendChild(layer);
  const [svg, line, frames, drop] =
    ["svg", ".line", ".frames", ".drop"].map((name) => layer.querySelector(name));
  const sides = layer.querySelectorAll(".side");

  const canvas = () => document.querySelector("canvas[data-engine]") || document.querySelector("canvas");
  const place = () => {
    const it = canvas();
    if (!it) return null;
    const box = it.getBoundingClientRect();
    for (const [name, value] of [["left", box.x], ["top", box.y], ["width", box.width], ["height", box.height]])
      layer.style[name] = `${value}px`;
    return box;
  };
  const shareOf = (event) => {
    const box = canvas().getBoundingClientRect();
    return [(event.clientX - box.x) / box.width, (event.clientY - box.y) / box.height];
  };
  const shape = (name, values) => {
    const it = document.createElementNS(svgNames, name);
    for (const [key, value] of Object.entries(values)) it.setAttribute(key, value);
    return it;
  };

  function drawTool(cursor) {
    const box = canvas().getBoundingClientRect(), at = ([x, y]) => [x * box.width, y * box.height];
    svg.replaceChildren();
    if (state.tool === "box" && points) {
      const [[x0, y0], [x1, y1]] = points.map(at);
      svg.append(shape("rect", {
        x: Math.min(x0, x1), y: Math.min(y0, y1), width: Math.abs(x1 - x0), height: Math.abs(y1 - y0),
        fill: "#285aa022", stroke: "#285aa0", "stroke-dasharray": "5 4",
      }));
    }
    if (state.tool !== "stroke" || !cursor) return;
    const radius = state.radius * box.height;
    if (points)
      svg.append(shape("polyline", {
        points: [...points, points[points.length - 1]].map(at).join(" "), fill: "none", stroke: "#ff8c0066",
        "stroke-width": 2 * radius, "stroke-linecap": "round", "stroke-linejoin": "round",
      }));
    const [cx, cy] = at(cursor);
    svg.append(shape("circle", { cx, cy, r: radius, fill: "none", stroke: "#285aa0" }));
  }

  function drawSplit() {
    const hidden = state.split === null;
    for (const it of [line, ...sides]) it.hidden = hidden;
    if (hidden) return;
    line.style.left = `${100 * state.split}%`;
    sides[0].style.right = `calc(${100 * (1 - state.split)}% + 12px)`;
    sides[1].style.left = `calc(${100 * state.split}% + 12px)`;
  }

  // ---- the socket ----

  const socket = ticket && new WebSocket(`${location.origin.replace("http", "ws")}/page/${ticket}`);
  const say = (message) => { if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message)); };
  const tellDrop = (text) => {
    drop.textContent = text;
    drop.hidden = !text;
  };
  if (socket) socket.onmessage = async (event) => {
    const message = JSON.parse(event.data);
    if (message.kind === "mouse") {
      const sliding = line.dataset.held;
      Object.assign(state, { tool: message.tool, radius: message.radius });
      if (!sliding || message.split === null) state.split = message.split;
      if (canvas()) canvas().style.cursor = state.tool === "look" ? "" : "crosshair";
      svg.replaceChildren();
      drawSplit();
    } else if (message.kind === "ready" && uploading) {
      await sendFile(uploading);
      uploading = null;
      tellDrop("");
    } else if (message.kind === "refused") {
      uploading = null;
      tellDrop(message.why);
      setTimeout(() => tellDrop(""), 5000);
    }
  };

  async function sendFile(file) {
    for (let start = 0; start < file.size; start += chunk) {
      if (socket.readyState !== WebSocket.OPEN) return;
      socket.send(await file.slice(start, start + chunk).arrayBuffer());
      tellDrop(`${file.name}: ${Math.min(100, Math.round(100 * (start + chunk) / file.size))} %`);
      while (socket.bufferedAmount > 16 * chunk) await new Promise((done) => setTimeout(done, 5));
    }
  }

  // ---- the mouse ----

  const chooses = (event) => state.tool !== "look" && event.button === 0 && event.target === canvas();
  listen(window, "pointerdown", (event) => {
    place();
    if (!chooses(event)) return;
    event.stopImmediatePropagation();
    event.preventDefault();
    const share = shareOf(event);
    points = state.tool === "box" ? [share, share] : [share];
    canvas().setPointerCapture(event.pointerId);
    drawTool(share);
  });
  listen(window, "pointermove", (event) => {
    if (state.tool === "look" || !canvas()) return;
    const share = shareOf(event);
    if (points) {
      event.stopImmediatePropagation();
      const last = points[points.length - 1];
      if (state.tool === "box") points[1] = share;
      else if (points.length < 1000 && Math.hypot(share[0] - last[0], share[1] - last[1]) > 0.003)
        points.push(share);
    }
    drawTool(share);
  });
  listen(window, "pointerup", (event) => {
    if (!points) return;
    event.stopImmediatePropagation();
    const how = event.altKey ? "remove" : event.shiftKey || state.tool === "stroke" ? "add" : "replace";
    const within = points.map((point) => point.map((x) => Math.min(Math.max(x, -2), 3)));
    if (state.tool === "box") say({ kind: "box", points: within, how });
    else say({ kind: "stroke", points: within, radius: state.radius, how });
    points = null;
    svg.replaceChildren();
  });
  listen(window, "pointercancel", () => { points = null; svg.replaceChildren(); });

  listen(line, "pointerdown", (event) => {
    event.stopImmediatePropagation();
    line.setPointerCapture(event.pointerId);
    line.dataset.held = "yes";
  });
  listen(line, "pointermove", (event) => {
    if (!line.dataset.held) return;
    event.stopImmediatePropagation();
    state.split = Math.min(Math.max(shareOf(event)[0], 0), 1);
    drawSplit();
    say({ kind: "split", share: state.split });
  });
  listen(line, "pointerup", () => { delete line.dataset.held; });

  // ---- files ----

  const hasFiles = (event) => socket && [...(event.dataTransfer?.types || [])].includes("Files");
  listen(window, "dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    place();
    if (!uploading) tellDrop("Drop a splat, a point cloud or a mesh to open it");
  });
  listen(window, "dragleave", (event) => { if (!event.relatedTarget && !uploading) tellDrop(""); });
  listen(window, "drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    tellDrop("");
    const file = event.dataTransfer.files[0];
    if (!file || uploading) return;
    uploading = file;
    say({ kind: "open", name: file.name, bytes: file.size });
  });

  // ---- frames ----

  let count = 0, since = performance.now(), running = true;
  (function frame(now) {
    if (!running) return;
    count++;
    if (now - since > 1000) {
      frames.textContent = `${Math.round(1000 * count / (now - since))} frames/s`;
      [count, since] = [0, now];
      place();
    }
    requestAnimationFrame(frame);
  })(since);

  const stop = () => {
    running = false;
    gone.abort();
    layer.remove();
    if (socket) socket.close();
  };
  window.splatdistill = { stop, state };
  place();
}
