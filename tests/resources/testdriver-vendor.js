/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

// testdriver over the runner of this project: see testharnessreport.js.

(function() {
  "use strict";

  const internal = window.test_driver_internal;
  const waiting = new Map();
  let context = window;
  let lastId = 0;

  function request(name, parameters) {
    if (context !== window) {
      return new Promise((resolve, reject) => {
        const id = ++lastId;
        waiting.set(id, {resolve, reject});
        context.postMessage({type: "testdriver-request", id, name, parameters}, "*");
      });
    }
    return window.__wptrunner.request(name, parameters);
  }

  window.addEventListener("message", event => {
    const message = event.data;
    if (!message || message.type !== "testdriver-reply" || event.source !== context) {
      return;
    }
    const {resolve, reject} = waiting.get(message.id);
    waiting.delete(message.id);
    if (message.error === null) {
      resolve(message.value);
    } else {
      reject(new Error(message.error));
    }
  });

  // Where a window is; null for this one if only the window with the harness can tell.
  function frame(view) {
    return {path: window.__wptrunner ? window.__wptrunner.pathTo(view || window) : null};
  }

  // Elements are parked in their own window, where WebDriver finds them.
  function reference(element) {
    const view = element.ownerDocument.defaultView;
    view.__wptrunner_elements = view.__wptrunner_elements || [];
    return {...frame(view), index: view.__wptrunner_elements.push(element) - 1};
  }

  internal.in_automation = true;
  internal.set_test_context = target => {
    context = target;
  };
  internal.click = element => request("click", {element: reference(element)});
  internal.send_keys = (element, keys) =>
    request("send_keys", {element: reference(element), keys});
  internal.delete_all_cookies = view => request("delete_all_cookies", {frame: frame(view)});
  internal.set_permission = (permission, view) =>
    request("set_permission", {frame: frame(view), permission});
})();
