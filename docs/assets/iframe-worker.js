// A browser starts no worker from file://. There, a hidden frame does its work: it runs the worker's script and passes messages on.
if (location.protocol === "file:") window.Worker = window.IFrameWorker = class extends EventTarget {
  constructor(url) {
    super()
    const frame = document.createElement("iframe")
    frame.hidden = true
    this.ready = new Promise(loaded => frame.addEventListener("load", () => loaded(frame.contentWindow)))
    window.fromFrame = data => this.dispatchEvent(new MessageEvent("message", {data}))
    frame.srcdoc = `<script>postMessage = data => parent.fromFrame(data)</script><script src="${encodeURI(new URL(url, location.href))}"></script>`
    document.body.append(frame)
  }
  postMessage(data) { this.ready.then(frame => frame.dispatchEvent(new frame.MessageEvent("message", {data}))) }
}
