/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What `token-broker check-module` and `doctor` say.

use std::path::Path;
use std::process::{Command, Output};

use crate::hostile;
use crate::softhsm::SoftHsm;

fn broker(arguments: &[&str], environment: &[(&str, &str)]) -> (bool, String) {
    let Output { status, stdout, .. } = Command::new(env!("CARGO_BIN_EXE_token-broker"))
        .args(arguments)
        .envs(environment.iter().copied())
        .output()
        .expect("the broker's program");
    (
        status.success(),
        String::from_utf8_lossy(&stdout).into_owned(),
    )
}

#[test]
fn a_module_that_works() {
    let hsm = SoftHsm::new();
    let config = hsm.config();
    let settings = &config.environment["SOFTHSM2_CONF"];
    let arguments = [
        "check-module",
        &config.module,
        "--read",
        settings,
        "--write",
        &config.write[0],
    ];
    let (works, text) = broker(&arguments, &[("SOFTHSM2_CONF", settings)]);
    assert!(works && text.contains("First (SoftHSM project"), "{text}");
    // Without its settings it does not.
    let (works, text) = broker(&arguments[..2], &[("SOFTHSM2_CONF", settings)]);
    assert!(!works && text.contains("--read PLACE"), "{text}");
}

#[test]
fn modules_that_do_not_work() {
    let library = hostile::library().display().to_string();
    for (manner, expected) in [
        ("crashes when it is loaded", "crashes"),
        ("fails in C_Initialize", "does not start"),
        ("calls what it may not when it is loaded", "SECCOMP"),
    ] {
        let environment = [("MANNER", manner), ("TARGET", "/nowhere")];
        let (works, text) = broker(&["check-module", &library], &environment);
        assert!(!works && text.contains(expected), "{manner}: {text}");
    }
    let (works, text) = broker(&["check-module", "/nowhere.so"], &[]);
    assert!(!works && text.contains("cannot be read"), "{text}");
    let (works, text) = broker(&["check-module", "/etc/passwd"], &[]);
    assert!(!works && text.contains("no shared library"), "{text}");
    assert!(Path::new(&library).exists());
}

#[test]
fn a_tpm_that_the_configuration_names() {
    let (_, text) = broker(&["doctor", "--tcti", "device:/nowhere"], &[]);
    assert!(text.contains("problem  no TPM (/nowhere)"), "{text}");
}
