/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Access rules of a secure element (GlobalPlatform Secure Element Access Control, GPD_SPE_013,
//! version 1.1 and the public review of 1.1.0): who may use which application, with which commands.
//!
//! - [`Rule`] and its parts: one rule, whatever it was read from;
//! - [`parse_rules`]: the rules in an ARA-M's answer; [`AraMReader`]: how to get that answer;
//! - [`ArfReader`]: the rules in the PKCS#15 files of a UICC; [`DirectoryReader`]: whether it is one;
//! - [`RuleSet`]: the decision, for an [`AppId`] and a [`Target`].
//!
//! What a rule calls a device application is an origin here, and its identifier the hash of the
//! origin's ASCII serialisation (Web API for Accessing Secure Element section 6.2). Certificate
//! chains, packages and permissions have no meaning for an origin.
//!
//! Where a combination is in doubt, access is denied; `docs/access-rules.md` lists the cases.

mod app;
mod ara_m;
mod arf;
mod data_objects;
mod decision;
mod directory;
mod files;
mod rule;

pub use app::{AppId, OriginError};
pub use ara_m::{ARA_M_AID, AraMReader, AraMStep};
pub use arf::{ArfReader, ArfStep, GPAC_ARF_AID, PKCS15_AID};
pub use data_objects::{RulesError, parse_rules};
pub use decision::{Access, Denial, RuleSet, Specificity, Target};
pub use directory::{DirectoryReader, DirectoryStep};
pub use files::DirectoryEntry;
pub use rule::{AidRef, ApduRule, AppRef, Filter, Filters, Rule};

/// The most rules and command filters that are taken from one element, counted together.
pub const MAX_RULES: usize = 65_536;
/// The most bytes that are read from one element to get its rules.
pub const MAX_BYTES: usize = 65_536;

/// What a card changes whenever its rules change: 8 bytes (section 4.1.2).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct RefreshTag(pub [u8; 8]);

/// What came of reading rules.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// These are the rules. The tag may be kept from now on, not before.
    Rules {
        /// The rules.
        rules: Box<RuleSet>,
        /// The tag that the card had before they were read, so that a change meanwhile shows next
        /// time.
        refresh_tag: RefreshTag,
    },
    /// The refresh tag is the one that was given: the rules read before are still right.
    Unchanged,
    /// The card says that it has no rules, or has no place for them.
    NoRules,
    /// Nothing on this element may be used.
    Closed(Closed),
}

/// Why an element is closed to everybody.
#[derive(Clone, Copy, Debug, Eq, thiserror::Error, PartialEq)]
pub enum Closed {
    /// The card answered with a status word that has no meaning here.
    #[error("reading the access rules failed with status {0}")]
    Status(crate::apdu::StatusWord),
    /// The rules are malformed.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The refresh tag is malformed.
    #[error("the refresh tag is malformed")]
    RefreshTag,
    /// There are more bytes than announced, or none although some were announced.
    #[error("the access rules are not as long as announced")]
    Length,
    /// More than [`MAX_BYTES`].
    #[error("the access rules are longer than {MAX_BYTES} bytes")]
    TooLong,
    /// More commands would be needed than any card with rules of that size should need.
    #[error("reading the access rules takes too many commands")]
    TooManyCommands,
    /// The rules changed each time while they were read.
    #[error("the access rules keep changing")]
    KeepChanging,
    /// There is more than one access control main file.
    #[error("there is more than one access control main file")]
    SeveralMainFiles,
    /// A PKCS#15 file is malformed.
    #[error("a PKCS#15 file is malformed")]
    MalformedFile,
}
