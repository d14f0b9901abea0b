// The page: sends a file or a recording to the service, and shows the text as it arrives.

const RATE = 16000;
const MOST_SECONDS = 30 * 60;
const MOST_DECODED_BYTES = 100e6;
const $ = (id) => document.getElementById(id);

let audio = null; // {blob, name}
let recording = null;
let running = null; // AbortController
let transcript = null; // {text, segments}
let hasWords = false; // whether the model gives times of words
let heard = null; // the audio of the current or last transcription
let spoken = []; // words that can be played: {start, end, element}
let marked = null; // the element of the word that is playing

// The audio to transcribe ---------------------------------------------------------------------

function choose(blob, name) {
  audio = { blob, name };
  showText($("text").textContent, []); // the text on the page belongs to another audio
  $("name").textContent = name;
  URL.revokeObjectURL($("player").src);
  $("player").src = URL.createObjectURL(blob);
  $("player").hidden = false;
  $("go").disabled = false;
  fail(null);
}

$("file").addEventListener("change", () => {
  const file = $("file").files[0];
  if (file) choose(file, file.name);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    const file = kind === "drop" && event.dataTransfer.files[0];
    if (file) choose(file, file.name);
  });
}

// The microphone ------------------------------------------------------------------------------

function checkMicrophone() {
  if (navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode) return;
  $("record").disabled = true;
  $("microphone-hint").hidden = false;
  $("microphone-hint").textContent = window.isSecureContext
    ? "This browser does not give pages a microphone."
    : "Browsers give the microphone only to pages on https or on this machine: use " +
      `--ssl-certfile, or ssh -L ${location.port || 80}:localhost:${location.port || 80}.`;
}

// Does not wait: closing a context that has not started may never finish.
function release(stream, context) {
  stream.getTracks().forEach((track) => track.stop());
  context.close().catch(() => {});
}

async function startRecording() {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const context = new AudioContext();
  try {
    await context.audioWorklet.addModule("ui/recorder.js");
  } catch (error) {
    release(stream, context);
    throw error;
  }
  const source = context.createMediaStreamSource(stream);
  const node = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
  const parts = [];
  recording = { stream, context, parts, n: 0 };
  node.port.onmessage = ({ data }) => {
    if (!recording) return;
    parts.push(data);
    recording.n += data.length;
    const seconds = recording.n / context.sampleRate;
    $("clock").textContent = clock(seconds);
    drawLevel(data);
    if (seconds > MOST_SECONDS) $("record").click();
  };
  source.connect(node);
  $("record").classList.add("recording");
  $("record-text").textContent = "Stop";
}

async function stopRecording() {
  const { stream, context, parts, n } = recording;
  recording = null;
  $("record").classList.remove("recording");
  $("record-text").textContent = "Record";
  const rate = context.sampleRate;
  release(stream, context);
  if (!n) return fail("Nothing was recorded: is the microphone on?");
  const whole = new AudioBuffer({ length: n, sampleRate: rate });
  let at = 0;
  for (const part of parts) {
    whole.copyToChannel(part, 0, at);
    at += part.length;
  }
  choose(await resampled(whole), "recording.wav");
}

$("record").addEventListener("click", async () => {
  $("record").disabled = true; // so that a second click does not start another
  try {
    await (recording ? stopRecording() : startRecording());
  } catch (error) {
    recording = null;
    const refused = error.name === "NotAllowedError";
    fail(refused ? "The browser was not allowed to use the microphone." : `Microphone: ${error.message}`);
  }
  $("record").disabled = false;
});

function drawLevel(samples) {
  const canvas = $("level");
  const pen = canvas.getContext("2d");
  const peak = Math.min(1, samples.reduce((most, x) => Math.max(most, Math.abs(x)), 0));
  pen.globalCompositeOperation = "copy"; // moves the picture to the left
  pen.drawImage(canvas, -1, 0);
  pen.globalCompositeOperation = "source-over";
  pen.fillStyle = getComputedStyle($("go")).backgroundColor;
  const height = Math.max(1, peak * canvas.height);
  pen.fillRect(canvas.width - 1, (canvas.height - height) / 2, 1, height);
}

// Audio as WAV, 16 kHz, mono ------------------------------------------------------------------

async function resampled(buffer) {
  const length = Math.max(1, Math.ceil((buffer.length * RATE) / buffer.sampleRate));
  const context = new OfflineAudioContext(1, length, RATE);
  const source = context.createBufferSource();
  source.buffer = buffer;
  source.connect(context.destination);
  source.start();
  return wav((await context.startRendering()).getChannelData(0));
}

async function decoded(blob) {
  const context = new OfflineAudioContext(1, 1, RATE);
  return resampled(await context.decodeAudioData(await blob.arrayBuffer()));
}

function wav(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, x)) * 32767, true));
  return new Blob([view], { type: "audio/wav" });
}

// Asking the service --------------------------------------------------------------------------

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!audio || running) return;
  running = new AbortController();
  show(true);
  const begin = performance.now();
  const chosen = audio; // the user may choose another meanwhile
  heard = chosen;
  try {
    try {
      await ask(chosen.blob, chosen.name);
    } catch (error) {
      // The browser may decode audio that the service cannot.
      if (error.code !== "invalid_audio" || chosen.blob.size > MOST_DECODED_BYTES) throw error;
      let blob;
      try {
        blob = await decoded(chosen.blob);
      } catch {
        throw error;
      }
      await ask(blob, "decoded.wav");
    }
    const seconds = (performance.now() - begin) / 1000;
    $("figures").textContent = [$("figures").textContent, `${seconds.toFixed(2)} s`].filter(Boolean).join(", ");
  } catch (error) {
    if (error.name !== "AbortError") fail(error.message);
  } finally {
    running = null;
    show(false);
  }
});

async function ask(blob, name) {
  const body = new FormData();
  const streams = $("endpoint").value !== "asr";
  if (streams) {
    body.append("stream", "true");
    body.append("response_format", "verbose_json");
    if (hasWords) body.append("timestamp_granularities[]", "word");
  }
  for (const [id, field] of [["begin", "begin_time"], ["end", "end_time"], ["tokens", "max_new_tokens"]]) {
    if ($(id).value) body.append(field, $(id).value);
  }
  body.append("file", blob, name);
  const key = $("key").value;
  const answer = await fetch($("endpoint").value, {
    method: "POST",
    body,
    signal: running.signal,
    headers: key ? { Authorization: `Bearer ${key}` } : {},
  });
  if (!answer.ok) throw await problem(answer);
  if (streams) await readEvents(answer.body);
  else finish(await answer.json());
}

async function problem(answer) {
  let found = {};
  try {
    found = await answer.json();
  } catch { /* a proxy's answer */ }
  const error = new Error(found.error?.message || found.detail || `The service answered ${answer.status}.`);
  error.code = found.error?.code;
  if (answer.status === 401) $("key").closest("details").open = true;
  return error;
}

async function readEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let ended = false;
  $("text").textContent = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.startsWith("data: ") && event.slice(6);
      if (!data || data === "[DONE]") continue;
      const message = JSON.parse(data);
      if (message.error) throw new Error(message.error.message);
      if (message.type === "transcript.text.delta") $("text").textContent += message.delta;
      if (message.type === "transcript.text.done") {
        ended = true;
        finish(message);
      }
    }
  }
  if (!ended) throw new Error("The connection ended before the text did; try again.");
}

// Showing -------------------------------------------------------------------------------------

function finish(answer) {
  transcript = { text: answer.text, segments: answer.segments || [] };
  showText(answer.text || "(no speech)", (heard === audio && answer.words) || []);
  $("raw").textContent = JSON.stringify(answer, null, 2);
  const figures = [];
  if (answer.duration !== undefined) figures.push(`${answer.duration.toFixed(1)} s of audio`);
  if (answer.latency_s !== undefined) figures.push(`latency ${answer.latency_s.toFixed(3)} s`);
  if (answer.prompt_tokens !== undefined) figures.push(`${answer.prompt_tokens} prompt tokens`);
  if (answer.usage?.output_tokens !== undefined) figures.push(`${answer.usage.output_tokens} tokens`);
  const doubtful = transcript.segments.filter((segment) => segment.finish_reason !== "stop").length;
  if (doubtful) figures.push(`${doubtful} parts may lack something`);
  $("figures").textContent = figures.join(", ");
  const warnings = (answer.warnings || []).map((warning) => warning.message);
  $("warnings").textContent = `About the audio: ${warnings.join("; ")}.`;
  $("warnings").hidden = !warnings.length;
  const rows = transcript.segments.map((segment) => {
    const row = document.createElement("tr");
    for (const cell of [clock(segment.start), clock(segment.end), segment.text.trim()]) {
      row.insertCell().textContent = cell;
    }
    return row;
  });
  $("segments").tBodies[0].replaceChildren(...rows);
  $("segments").hidden = rows.length < 2;
  for (const button of document.querySelectorAll("[data-format]")) {
    button.disabled = button.dataset.format !== "txt" && !rows.length;
  }
}

// Each word is searched in the text after the one before it.
function showText(text, words) {
  const parts = [];
  let at = 0;
  spoken = words.map(({ word, start, end }) => {
    const element = document.createElement("span");
    element.className = "word";
    element.textContent = word;
    const begin = text.indexOf(word, at);
    parts.push(text.slice(at, begin), element);
    at = begin + word.length;
    return { start, end, element };
  });
  $("text").replaceChildren(...parts, text.slice(at));
  mark();
}

function mark() {
  const now = $("player").currentTime;
  const found = spoken.find(({ start, end }) => start <= now && now < end)?.element;
  if (found === marked) return;
  marked?.removeAttribute("aria-current");
  found?.setAttribute("aria-current", "true");
  marked = found;
}

function follow() {
  mark();
  if (!$("player").paused) requestAnimationFrame(follow);
}

$("player").addEventListener("play", follow);
$("player").addEventListener("seeked", mark);
$("text").addEventListener("click", async ({ target }) => {
  const word = spoken.find(({ element }) => element === target);
  if (!word) return;
  $("player").currentTime = word.start;
  try {
    await $("player").play();
  } catch (error) {
    if (error.name === "NotSupportedError") fail("This browser cannot play this audio.");
  }
});

function show(isBusy) {
  if (isBusy) {
    fail(null);
    transcript = null;
    showText("", []);
    $("figures").textContent = "";
    $("warnings").hidden = true;
    $("raw").textContent = "";
    $("segments").hidden = true;
  }
  $("result").hidden = !isBusy && !transcript && !$("text").textContent;
  $("text").classList.toggle("busy", isBusy);
  $("go").disabled = isBusy || !audio;
  $("cancel").hidden = !isBusy;
}

function fail(message) {
  $("error").hidden = !message;
  $("error").textContent = message || "";
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  if (!parts[0]) parts.shift();
  return parts.map((part, i) => (i ? String(part).padStart(2, "0") : part)).join(":");
}

function cueTime(seconds, comma) {
  const ms = Math.round(seconds * 1000);
  const pad = (n, width = 2) => String(n).padStart(width, "0");
  const [h, m, s] = [Math.floor(ms / 3600000), Math.floor(ms / 60000) % 60, Math.floor(ms / 1000) % 60];
  return `${pad(h)}:${pad(m)}:${pad(s)}${comma}${pad(ms % 1000, 3)}`;
}

function subtitles(kind) {
  const spoken = transcript.segments.filter((segment) => segment.text.trim());
  const cues = spoken.map((segment, i) => {
    const times = [segment.start, segment.end].map((t) => cueTime(t, kind === "srt" ? "," : "."));
    const text = segment.text.trim().replaceAll("-->", "->");
    return `${kind === "srt" ? `${i + 1}\n` : ""}${times.join(" --> ")}\n${text}\n\n`;
  });
  return (kind === "vtt" ? "WEBVTT\n\n" : "") + cues.join("");
}

for (const button of document.querySelectorAll("[data-format]")) {
  button.addEventListener("click", () => {
    const kind = button.dataset.format;
    const content = kind === "txt" ? `${transcript.text}\n` : subtitles(kind);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type: "text/plain;charset=utf-8" }));
    link.download = `${(audio?.name || "audio").replace(/\.[^.]*$/, "")}.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
$("copy").hidden = !navigator.clipboard; // missing where browsers give no microphone
$("copy").addEventListener("click", () => navigator.clipboard.writeText(transcript?.text || ""));
$("cancel").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  running?.abort();
  audio = transcript = null;
  $("form").reset();
  $("key").value = sessionStorage.getItem("key") || "";
  $("name").textContent = "or drop it here: WAV, FLAC, Opus, WebM, MP3, M4A …";
  $("player").pause();
  $("player").hidden = true;
  $("result").hidden = true;
  showText("", []);
  $("clock").textContent = "0:00";
  $("go").disabled = true;
  fail(null);
});
$("key").addEventListener("change", () => sessionStorage.setItem("key", $("key").value));

async function watch() {
  let text = "not reachable";
  try {
    const found = await (await fetch("ready")).json();
    text = found.model === "loading" ? "loading the model" : found.ready ? "ready" : "not ready";
    hasWords = Boolean(found.words);
    if (found.queued) text += `, ${found.queued} waiting`;
  } catch { /* shown below */ }
  $("state").textContent = text;
  setTimeout(watch, text === "ready" ? 15000 : 2000);
}

$("key").value = sessionStorage.getItem("key") || "";
checkMicrophone();
watch();
