/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Decoding messages of peers that are not trusted.

use postcard::de_flavors::{Flavor, Slice};
use postcard::{Deserializer, Error, Result};
use serde_core::Deserialize;

/// How much of its thread's stack the decoding of a message may use, in bytes. Types that contain themselves can be nested
/// as deep as a message is long.
const MAX_STACK: usize = 1 << 20;

/// Decodes a message.
pub(crate) fn decode<'de, T: Deserialize<'de>>(data: &'de [u8]) -> Result<T> {
    let bounded = StackBounded {
        slice: Slice::new(data),
        stack: stack_position(),
    };
    T::deserialize(&mut Deserializer::from_flavor(bounded))
}

/// Where the stack is, more or less.
#[inline(always)]
fn stack_position() -> usize {
    let here = 0u8;
    std::hint::black_box(&here) as *const u8 as usize
}

/// Gives out bytes as long as there is enough of the stack left. No level of nesting goes without a byte.
struct StackBounded<'de> {
    slice: Slice<'de>,
    stack: usize,
}

impl<'de> StackBounded<'de> {
    #[inline]
    fn check(&self) -> Result<()> {
        match self.stack.abs_diff(stack_position()) > MAX_STACK {
            true => Err(Error::DeserializeBadEncoding),
            false => Ok(()),
        }
    }
}

impl<'de> Flavor<'de> for StackBounded<'de> {
    type Remainder = &'de [u8];
    type Source = &'de [u8];

    #[inline]
    fn pop(&mut self) -> Result<u8> {
        self.check()?;
        self.slice.pop()
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.slice.size_hint()
    }

    #[inline]
    fn try_take_n(&mut self, count: usize) -> Result<&'de [u8]> {
        self.slice.try_take_n(count)
    }

    fn finalize(self) -> Result<&'de [u8]> {
        self.slice.finalize()
    }
}
