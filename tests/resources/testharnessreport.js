/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

// What the runner sees of a test. It polls `__wptrunner.take()`, carries out the actions that it
// finds there, answers them with `reply()`, and reads the results from the last message.

(function() {
  "use strict";

  const messages = [];
  const waiting = new Map();
  let lastId = 0;

  // The way from the top-level page to a window, as child indices. WebDriver can follow it.
  function pathTo(target) {
    const path = [];
    for (let view = target; view !== view.parent; view = view.parent) {
      const siblings = view.parent.frames;
      let index = 0;
      while (index < siblings.length && siblings[index] !== view) {
        index++;
      }
      path.unshift(index);
    }
    return path;
  }

  // Nobody looks at the page, and showing every assertion takes longer than some tests do.
  setup({output: false});

  window.__wptrunner = {
    take() {
      return messages.splice(0);
    },

    // Asks the runner for something; resolves with its answer.
    request(name, parameters) {
      return new Promise((resolve, reject) => {
        const id = ++lastId;
        waiting.set(id, {resolve, reject});
        messages.push({type: "action", id, name, parameters});
      });
    },

    reply(id, error, value) {
      const {resolve, reject} = waiting.get(id);
      waiting.delete(id);
      if (error === null) {
        resolve(value);
      } else {
        reject(new Error(error));
      }
    },

    pathTo,
  };

  // Frames that called test_driver.set_test_context(this window) ask through here.
  window.addEventListener("message", event => {
    const message = event.data;
    if (!message || message.type !== "testdriver-request") {
      return;
    }
    const parameters = message.parameters;
    for (const name of ["frame", "element"]) {
      // A frame cannot always find its own way up; its window says where it is.
      if (parameters[name] && parameters[name].path === null) {
        parameters[name].path = pathTo(event.source);
      }
    }
    window.__wptrunner.request(message.name, parameters).then(
      value => event.source.postMessage(
        {type: "testdriver-reply", id: message.id, error: null, value}, "*"),
      error => event.source.postMessage(
        {type: "testdriver-reply", id: message.id, error: error.message}, "*"));
  });

  add_completion_callback((tests, harness) => {
    messages.push({
      type: "complete",
      status: harness.status,
      message: harness.message,
      subtests: tests.map(test => ({
        name: test.name,
        status: test.status,
        message: test.message,
      })),
    });
  });
})();
