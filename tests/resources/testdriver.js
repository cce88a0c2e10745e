/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

// The parts of web-platform-tests' testdriver API that these tests use. What each does is up to
// `test_driver_internal`, which testdriver-vendor.js fills in.

(function() {
  "use strict";

  function missing(name) {
    return () => Promise.reject(new Error(`testdriver: ${name} is not implemented`));
  }

  window.test_driver_internal = {
    in_automation: false,
    set_test_context: () => {
      throw new Error("testdriver: set_test_context is not implemented");
    },
    click: missing("click"),
    send_keys: missing("send_keys"),
    delete_all_cookies: missing("delete_all_cookies"),
    set_permission: missing("set_permission"),
  };

  function require_in_document(element) {
    if (!element.isConnected) {
      throw new Error("testdriver: the element is not in a document");
    }
  }

  window.test_driver = {
    // Tells in which window the harness runs, for windows without one of their own.
    set_test_context(context) {
      window.test_driver_internal.set_test_context(context);
    },

    // Clicks in the middle of an element.
    async click(element) {
      require_in_document(element);
      return window.test_driver_internal.click(element);
    },

    // Types into an element.
    async send_keys(element, keys) {
      require_in_document(element);
      return window.test_driver_internal.send_keys(element, keys);
    },

    // Runs `action` with user activation in the window `context`.
    async bless(intent, action, context = null) {
      const view = context || window;
      const button = view.document.createElement("button");
      button.textContent = `This test needs a click to ${intent}`;
      view.document.body.appendChild(button);
      const clicked = new Promise(resolve => {
        button.addEventListener("click", () => {
          button.remove();
          resolve(typeof action === "function" ? action() : null);
        }, {once: true});
      });
      await window.test_driver.click(button);
      return clicked;
    },

    async delete_all_cookies(context = null) {
      return window.test_driver_internal.delete_all_cookies(context);
    },

    // Sets a permission for the origin of the window `context`.
    async set_permission(descriptor, state, context = null) {
      return window.test_driver_internal.set_permission({descriptor, state}, context);
    },
  };
})();
