// Shows one report: the times in its data are milliseconds, the scores thousandths.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const make = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const video = $("video");
  let hasPlayer = video !== null;
  let isReady = false; // the player takes seeks
  let offset = 0; // seconds of the player at the first frame
  let hasSought = false; // before the player showed its first frame
  let pending = 0; // the call of `follow` in the next frame
  let now = data.start; // ms
  let stream = data.streams[0];
  let current = null; // the row of the table for now
  let rows = [];

  // Values ------------------------------------------------------------------------------------------------------------
  const span = data.end - data.start;
  const colour = (label) => (label < data.num_classes ? `k${label}` : "other");
  const percent = (score) => `${Math.round(score / 10)}\u00a0%`;
  const place = (time) => `${(100 * (time - data.start)) / span}%`;
  const clamp = (time) => Math.min(Math.max(time, data.start), data.end);
  function clock(time, digits = 1) {
    const unit = 10 ** digits;
    const total = Math.round((time / 1000) * unit);
    const seconds = ((total % (60 * unit)) / unit).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
    const minutes = Math.floor(total / (60 * unit));
    const hours = Math.floor(minutes / 60);
    return hours ? `${hours}:${String(minutes % 60).padStart(2, "0")}:${seconds}` : `${minutes}:${seconds}`;
  }
  // The last index whose value is at most `time`; values ascend.
  function lastAtMost(length, value, time) {
    let [low, high] = [0, length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (value(middle) <= time) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }
  // The index of the segment seen at a time, the best of several; -1 for none.
  function segmentAt(time) {
    let best = -1;
    stream.segments.forEach(([start, end, , score], i) => {
      if (start <= time && (time < end || (time === end && end === data.end)) && (best < 0 || score > stream.segments[best][3])) best = i;
    });
    return best;
  }
  function thumbnailAt(time) {
    const i = lastAtMost(data.thumbnails.length, (k) => data.thumbnails[k][0], time);
    return data.thumbnails[Math.max(i, 0)];
  }
  const show = (image, thumbnail) => {
    const source = thumbnail ? `data:image/jpeg;base64,${thumbnail[1]}` : "";
    if (thumbnail && image.src !== source) image.src = source;
  };

  // Time --------------------------------------------------------------------------------------------------------------
  function seek(time) {
    now = clamp(time);
    if (isReady) video.currentTime = now / 1000 + offset;
    update();
  }
  function update() {
    $("playhead").style.left = place(now);
    $("clock").textContent = `${clock(now)} / ${clock(data.end)}`;
    const i = segmentAt(now);
    const [, , label, score] = stream.segments[i] || [];
    $("label").textContent = i < 0 ? "no segment" : data.labels[label];
    $("label").classList.toggle("none", i < 0);
    $("score").textContent = i < 0 ? "" : `${percent(score)} over the segment`;
    const cell = Math.max(0, lastAtMost(stream.bounds.length - 1, (k) => stream.bounds[k], now));
    for (const [k, item] of [...$("classes").children].entries()) {
      item.querySelector("i").style.width = `${stream.curves[k][cell] / 10}%`;
      item.querySelector(".number").textContent = percent(stream.curves[k][cell]);
    }
    $("time").setAttribute("aria-valuenow", (now / 1000).toFixed(1));
    $("time").setAttribute("aria-valuetext", `${clock(now)}, ${$("label").textContent}`);
    if (!hasPlayer) show($("still"), thumbnailAt(now));
    if (rows[i] !== current) {
      current?.classList.remove("current");
      current?.removeAttribute("aria-current");
      current = rows[i];
      current?.classList.add("current");
      current?.setAttribute("aria-current", "true");
      if (current) reveal(current);
    }
  }
  // Scrolls the table, and never the page.
  function reveal(row) {
    const box = $("scroll");
    const head = box.querySelector("thead").offsetHeight;
    const above = row.offsetTop - head < box.scrollTop;
    if (above) box.scrollTop = row.offsetTop - head;
    else if (row.offsetTop + row.offsetHeight > box.scrollTop + box.clientHeight)
      box.scrollTop = row.offsetTop + row.offsetHeight - box.clientHeight;
  }
  function follow() {
    cancelAnimationFrame(pending);
    if (!isReady) return;
    now = clamp((video.currentTime - offset) * 1000 + 1); // 1: browsers round down
    update();
    if (!video.paused) pending = requestAnimationFrame(follow);
  }
  function losePlayer() {
    hasPlayer = isReady = false;
    video.hidden = true;
    $("viewer").hidden = false;
    update();
  }
  if (video) {
    for (const event of ["play", "seeked", "timeupdate"]) video.addEventListener(event, follow);
    video.addEventListener("error", losePlayer);
    for (const event of ["loadstart", "seeking"]) video.addEventListener(event, () => (hasSought = event === "seeking"));
    video.addEventListener("loadedmetadata", () => {
      if (!video.videoWidth) losePlayer(); // it would play the sound only
    });
    // Where sound comes first, players count from there. Chromium also keeps the times of a file that begins later.
    video.addEventListener("loadeddata", () => {
      hasSought ||= video.seeking; // its event may come later
      offset = hasSought ? data.offset : Math.max(data.offset, video.currentTime);
      isReady = hasPlayer;
      if (hasSought) follow();
      else if (now > 0 || offset > 0) seek(now);
    });
    if (video.error) losePlayer();
    $("file").addEventListener("change", (event) => {
      const [file] = event.target.files;
      if (!file) return;
      [hasPlayer, isReady] = [true, false];
      video.hidden = false;
      $("viewer").hidden = true;
      video.src = URL.createObjectURL(file);
    });
  }

  // Drawing -----------------------------------------------------------------------------------------------------------
  function drawStreams() {
    for (const one of data.streams) {
      const lane = make("div", "lane");
      one.lane = lane;
      const last = []; // end and label of the last segment in each row of the lane
      one.parts = one.segments.map(([start, end, label]) => {
        let row = last.findIndex(([before, other]) => before <= start && other === label);
        if (row < 0) row = last.findIndex(([before]) => before <= start);
        if (row < 0) row = last.length;
        last[row] = [end, label];
        const part = make("div", colour(label));
        part.dir = "auto";
        part.style.setProperty("--row", row);
        part.style.left = place(start);
        part.style.width = `${(100 * (end - start)) / span}%`;
        part.dataset.label = label;
        lane.append(part);
        return part;
      });
      lane.style.setProperty("--rows", Math.max(1, last.length));
      $("lanes").append(lane);
      if (data.streams.length > 1) {
        const button = make("button", "", one.name);
        button.type = "button";
        button.addEventListener("click", () => choose(one));
        one.button = button;
        $("streams").append(button);
      }
    }
    for (let k = 0; k < data.num_classes; k++) {
      const item = make("li", `k${k}`);
      const meter = make("span", "meter");
      meter.append(make("i"));
      const name = make("span", "name", data.labels[k]);
      name.title = data.labels[k];
      name.dir = "auto";
      item.append(make("span", "dot"), name, meter, make("span", "number"));
      item.addEventListener("mouseenter", () => highlight(k));
      item.addEventListener("mouseleave", () => highlight(null));
      $("classes").append(item);
    }
  }
  function highlight(label) {
    const dims = (k) => label !== null && Number(k) !== label;
    for (const path of $("curves").querySelectorAll("[data-label]")) path.classList.toggle("dim", dims(path.dataset.label));
    for (const part of $("lanes").querySelectorAll("[data-label]")) part.classList.toggle("dim", dims(part.dataset.label));
  }
  function svg(name, className, d) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    element.setAttribute("class", className);
    element.setAttribute("d", d);
    return element;
  }
  function drawCurves() {
    const x = (time) => ((1000 * (time - data.start)) / span).toFixed(1);
    const y = (score) => (100 - score / 10).toFixed(1);
    const paths = [0, 500, 1000].map((score) => svg("path", "grid", `M0 ${y(score)}H1000`));
    const lines = stream.curves.map((curve, k) => {
      const points = curve.map((score, i) => `${x((stream.bounds[i] + stream.bounds[i + 1]) / 2)} ${y(score)}`);
      const line = `${x(stream.bounds[0])} ${y(curve[0])}L${points.join("L")}L${x(stream.bounds.at(-1))} ${y(curve.at(-1))}`;
      const both = [svg("path", `area k${k}`, `M${x(stream.bounds[0])} 100L${line}V100Z`), svg("path", `line k${k}`, `M${line}`)];
      for (const path of both) path.dataset.label = k;
      return both;
    });
    $("curves").replaceChildren(...paths, ...lines.map(([area]) => area), ...lines.map(([, line]) => line).reverse());
  }
  function drawRows() {
    rows = stream.segments.map(([start, end, label, score]) => {
      const row = make("tr", colour(label));
      const button = make("button", "", clock(start));
      button.type = "button";
      button.append(make("span", "end", ` – ${clock(end)}`));
      const name = make("div", "name");
      const text = make("span", "", data.labels[label]);
      text.dir = "auto";
      name.append(make("span", "dot"), text);
      const meter = make("span", "meter");
      const bar = make("i");
      bar.style.width = `${score / 10}%`;
      meter.append(bar);
      const both = make("div", "number");
      both.append(meter, make("span", "", percent(score)));
      for (const cell of [button, `${((end - start) / 1000).toFixed(1)} s`, name, both]) {
        const td = make("td", cell === name ? "" : "number");
        td.append(cell);
        row.append(td);
      }
      row.addEventListener("click", () => seek(start));
      return row;
    });
    $("rows").replaceChildren(...rows);
    const [shown, all] = [rows.length, stream.num_segments];
    const kind = data.streams.length > 1 ? `, ${stream.name}` : "";
    $("scroll").hidden = all === 0;
    if (all === 0) $("count").textContent = "No segment: lower --min-seconds or --threshold";
    else $("count").textContent = shown < all ? `the ${shown} longest of ${all}${kind}` : `${all}${kind}`;
  }
  // What depends on the width: how many thumbnails fit, which segments are wide enough for text, ticks.
  function fit() {
    const width = $("time").clientWidth;
    const strip = $("strip");
    const wide = strip.clientHeight * Math.max(0.5, data.size[0] / data.size[1]);
    const count = Math.min(Math.max(1, Math.round(width / wide)), 60);
    strip.hidden = data.thumbnails.length === 0;
    if (strip.children.length !== count && data.thumbnails.length) {
      strip.replaceChildren(
        ...Array.from({ length: count }, (_, i) => {
          const image = make("img");
          image.alt = "";
          image.draggable = false;
          show(image, thumbnailAt(data.start + (span * (i + 0.5)) / count));
          return image;
        }),
      );
    }
    for (const one of data.streams)
      one.parts.forEach((part, i) => {
        const [start, end, label] = one.segments[i];
        const pixels = (width * (end - start)) / span;
        part.textContent = pixels > 34 ? data.labels[label] : "";
        part.classList.toggle("slim", pixels < 5);
      });
    const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 36000, 86400];
    const step = 1000 * (steps.find((seconds) => (1000 * seconds * width) / span > 64) ?? 7 * 86400);
    const ticks = [];
    for (let time = Math.ceil(data.start / step) * step; time <= data.end; time += step) {
      const pixels = (width * (time - data.start)) / span;
      if (width - pixels < 14) continue;
      const tick = make("span", pixels < 14 ? "first" : "", clock(time, step < 1000 ? 1 : 0));
      tick.style.left = place(time);
      ticks.push(tick);
    }
    $("axis").replaceChildren(...ticks);
    const top = $("plot").getBoundingClientRect().top;
    const middle = (element) => {
      const box = element.getBoundingClientRect();
      return [box.top - top, box.height];
    };
    const names = data.streams.map((one) => {
      const [y, height] = middle(one.lane);
      return [one.name, y + height / 2];
    });
    const [y, height] = middle($("curves"));
    names.push(["100 %", y], ["50 %", y + height / 2], ["0 %", y + height]);
    $("names").replaceChildren(
      ...names.map(([text, at]) => {
        const name = make("span", "number", text);
        name.style.top = `${at}px`;
        return name;
      }),
    );
  }
  function choose(one) {
    stream = one;
    for (const other of data.streams) {
      other.lane.classList.toggle("chosen", other === one);
      other.button?.setAttribute("aria-pressed", String(other === one));
    }
    current = null;
    drawCurves();
    drawRows();
    fit();
    update();
  }

  // Input -------------------------------------------------------------------------------------------------------------
  const time = $("time");
  const timeOf = (event) => {
    const box = time.getBoundingClientRect();
    return clamp(data.start + (span * (event.clientX - box.left)) / box.width);
  };
  time.setAttribute("aria-valuemin", (data.start / 1000).toFixed(1));
  time.setAttribute("aria-valuemax", (data.end / 1000).toFixed(1));
  time.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    time.setPointerCapture(event.pointerId);
    seek(timeOf(event));
  });
  time.addEventListener("pointermove", (event) => {
    if (time.hasPointerCapture(event.pointerId)) seek(timeOf(event));
    if (event.pointerType !== "mouse") return;
    const [peek, at] = [$("peek"), timeOf(event)];
    peek.hidden = false;
    const half = peek.offsetWidth / 2;
    peek.style.left = `${Math.min(Math.max(event.clientX - time.getBoundingClientRect().left, half - 40), time.clientWidth - half + 8)}px`;
    const thumbnail = thumbnailAt(at);
    peek.querySelector("img").hidden = !thumbnail;
    show(peek.querySelector("img"), thumbnail);
    const i = segmentAt(at);
    peek.querySelector("span").textContent = `${clock(at)}  ${i < 0 ? "" : data.labels[stream.segments[i][2]]}`;
  });
  time.addEventListener("pointerleave", () => ($("peek").hidden = true));

  function step(direction) {
    const starts = stream.segments.map(([start]) => start);
    const next = direction > 0 ? starts.find((start) => start > now + 20) : starts.findLast((start) => start < now - 300);
    if (next !== undefined) seek(next);
    else if (direction < 0) seek(data.start);
  }
  const keys = {
    " ": () => hasPlayer && (video.paused ? video.play().catch(() => {}) : video.pause()),
    ArrowLeft: () => seek(now - 1000),
    ArrowRight: () => seek(now + 1000),
    Home: () => seek(data.start),
    End: () => seek(data.end),
    j: () => step(1),
    k: () => step(-1),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { target } = event;
    const isLetter = event.key === "j" || event.key === "k";
    if (!isLetter && target.closest("video, summary, input, button") && !(target.closest("#rows") && event.key !== " ")) return;
    const inPlace = target.closest("#time, #rows");
    let action = Object.hasOwn(keys, event.key) ? keys[event.key] : null;
    if (inPlace && event.key === "ArrowDown") action = keys.j;
    if (inPlace && event.key === "ArrowUp") action = keys.k;
    if (!inPlace && (event.key === "Home" || event.key === "End")) action = null;
    if (!action) return;
    event.preventDefault();
    action();
  });

  drawStreams();
  choose(stream);
  new ResizeObserver(fit).observe($("time"));
})();
