// Search in a page that was opened from a folder. Browsers start no workers from file:// addresses, so the
// script of the worker runs in a hidden frame there. Served pages have workers, and this file does nothing.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super();
      const home = new URL(script, location.href);
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inner = frame.contentWindow; // about:blank, so of the same origin as this page
      const load = (source) =>
        new Promise((done, failed) => {
          const tag = this.inner.document.createElement("script");
          tag.src = new URL(source, home).href;
          tag.onload = done;
          tag.onerror = failed;
          this.inner.document.body.append(tag);
        });
      this.inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.inner.importScripts = async (...sources) => {
        for (const source of sources) await load(source);
      };
      this.ready = load(home); // messages wait for it, and stay in order
    }

    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
