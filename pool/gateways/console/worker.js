// The shared worker: one hub for all tabs of this browser.

import { makeHub } from "./hub.js";

const hub = makeHub();
addEventListener("connect", (event) => hub.connect(event.ports[0]));
