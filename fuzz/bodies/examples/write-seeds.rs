/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Writes the seeds into `fuzz/seeds`, in place of those that are there.

use std::fs;
use std::io::{Error, ErrorKind, Result};

use fuzz_bodies::{TARGETS, seeds};

fn main() -> Result<()> {
    for (target, _) in TARGETS {
        let folder = seeds::folder(target);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&folder)?,
        }
        let seeds = seeds::of(target);
        if seeds.is_empty() {
            return Err(Error::other(format!("{target} has no seeds")));
        }
        for (name, bytes) in seeds {
            fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}
