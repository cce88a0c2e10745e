/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Every fuzz target with its seeds, and with inputs made from them and at random. The inputs are the same each time:
//! what is found here is found again.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use fuzz_bodies::{TARGETS, seeds};

/// Inputs for each target, besides the seeds.
const INPUTS: usize = 3000;
const MAX_RANDOM_LENGTH: u64 = 300;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }

    fn below(&mut self, bound: u64) -> usize {
        (self.next() % bound.max(1)) as usize
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = self.below(MAX_RANDOM_LENGTH);
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// A seed with some changes.
    fn mutated(&mut self, seeds: &seeds::Seeds) -> Vec<u8> {
        let pick = |random: &mut Self| seeds[random.below(seeds.len() as u64)].1.clone();
        let mut bytes = pick(self);
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() as u64 + 1);
            match self.below(5) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.next() as u8),
                2 if at < bytes.len() => bytes[at] = self.next() as u8,
                3 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                _ => {
                    let other = pick(self);
                    let from = self.below(other.len() as u64 + 1);
                    bytes.truncate(at);
                    bytes.extend(&other[from..]);
                }
            }
        }
        bytes
    }
}

fn smoke(target: &str) {
    let (_, body) = TARGETS
        .into_iter()
        .find(|(name, _)| *name == target)
        .expect("a target");
    let check = |bytes: &[u8]| {
        if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| body(bytes))) {
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{target}-failure"));
            fs::write(&file, bytes).unwrap();
            let file = file.display();
            eprintln!("to replay it: cargo xtask fuzz {target} --replay {file}");
            panic::resume_unwind(panic);
        }
    };
    let seeds = seeds::of(target);
    assert!(!seeds.is_empty());
    for (_, bytes) in &seeds {
        check(bytes);
    }
    let mut random = Random(1);
    for _ in 0..INPUTS {
        let bytes = if random.below(4) == 0 {
            random.bytes()
        } else {
            random.mutated(&seeds)
        };
        check(&bytes);
    }
}

macro_rules! smoke {
    ($($target:ident)*) => {
        $(
            #[test]
            fn $target() {
                smoke(stringify!($target));
            }
        )*

        #[test]
        fn every_target_is_here() {
            assert_eq!(TARGETS.map(|(name, _)| name), [$(stringify!($target)),*]);
        }
    };
}

smoke! {
    access apdu atr broker_to_document exchange fci keys permissions_policy piv port_to_broker response tlv transport
    virtual_card vpcd
}

#[test]
fn the_seeds_are_up_to_date() {
    for (target, _) in TARGETS {
        let mut there: Vec<(String, Vec<u8>)> = fs::read_dir(seeds::folder(target))
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read(entry.path()).unwrap())
            })
            .collect();
        there.sort();
        let mut wanted: Vec<(String, Vec<u8>)> = seeds::of(target)
            .into_iter()
            .map(|(name, bytes)| (name.to_owned(), bytes))
            .collect();
        wanted.sort();
        assert!(
            there == wanted,
            "fuzz/seeds/{target}: run `cargo run -p fuzz_bodies --example write-seeds`"
        );
    }
}
