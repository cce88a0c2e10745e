/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! OpenSSL's program.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use token_workers::key_protocol::{Curve, Hash};

/// A folder for what the program reads and writes.
pub struct OpenSsl(TempDir);

pub fn name(hash: Hash) -> &'static str {
    match hash {
        Hash::Sha1 => "sha1",
        Hash::Sha256 => "sha256",
        Hash::Sha384 => "sha384",
        Hash::Sha512 => "sha512",
    }
}

impl OpenSsl {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("a file");
        path
    }

    pub fn get(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("a file")
    }

    /// Runs the program in its folder. Its output, or `None` if it fails.
    pub fn try_run(&self, arguments: &[&str]) -> Option<Vec<u8>> {
        self.run_with(arguments.iter().map(OsStr::new))
    }

    fn run_with<'a>(&self, arguments: impl Iterator<Item = &'a OsStr>) -> Option<Vec<u8>> {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(self.0.path())
            .output()
            .expect("openssl");
        if !output.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        }
        output.status.success().then_some(output.stdout)
    }

    pub fn run(&self, arguments: &[&str]) -> Vec<u8> {
        self.try_run(arguments).expect("success")
    }

    pub fn digest(&self, hash: Hash, data: &[u8]) -> Vec<u8> {
        self.put("message", data);
        self.run(&["dgst", &format!("-{}", name(hash)), "-binary", "message"])
    }

    /// Whether it is the signature of a message, with these options besides.
    pub fn verifies(
        &self,
        public_key: &[u8],
        hash: Hash,
        options: &[&str],
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        self.put("key.der", public_key);
        self.put("message", message);
        self.put("signature", signature);
        let hash = format!("-{}", name(hash));
        let mut arguments = vec!["dgst", &hash, "-verify", "key.der", "-keyform", "DER"];
        arguments.extend(options);
        arguments.extend(["-signature", "signature", "message"]);
        self.try_run(&arguments).is_some()
    }
}

/// ECDSA-Sig-Value (RFC 3279, 2.2.3) of the two halves.
pub fn ecdsa_der(curve: Curve, signature: &[u8]) -> Vec<u8> {
    assert_eq!(signature.len(), 2 * curve.length());
    let (r, s) = signature.split_at(curve.length());
    let integer = |number: &[u8]| {
        let start = number.iter().position(|byte| *byte != 0).expect("a number");
        let mut digits = number[start..].to_vec();
        if digits[0] >= 0x80 {
            digits.insert(0, 0);
        }
        [&[2, digits.len() as u8], &digits[..]].concat()
    };
    let content = [integer(r), integer(s)].concat();
    match content.len() {
        length @ 0..0x80 => [&[0x30, length as u8], &content[..]].concat(),
        length => [&[0x30, 0x81, length as u8], &content[..]].concat(),
    }
}
