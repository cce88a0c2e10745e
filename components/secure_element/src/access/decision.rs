/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The decision by a set of rules (sections 3.4 and 4.2.3, annex G).
//!
//! Rules of the same references are combined first: never, then filters (all of them together),
//! then always, then nothing said, which means never. Then the most specific rule is looked for:
//!
//! | step | rule for | if there is none |
//! |---|---|---|
//! | A | this origin, this application | never, if this application has a rule for another origin |
//! | B | everybody, this application | |
//! | C | this origin, all applications | never, if there is a rule for another origin and all applications |
//! | D | everybody, all applications | never |
//!
//! In A and C the rule that names an origin by SHA-256 counts, and the one by SHA-1 only if there
//! is none. The implicitly selected application is one more application, whose AID is unknown.
//!
//! A decision takes a few look-ups in hash tables, however many rules there are.

use std::collections::HashMap;
use std::sync::Arc;

use super::app::AppId;
use super::rule::{AidRef, ApduRule, AppRef, Filter, Filters, Rule};
use crate::apdu::Header;
use crate::channel::Aid;

/// What somebody asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Target {
    /// The application of this complete AID, the DF name.
    Application(Aid),
    /// The application that a channel has without a SELECT.
    Implicit,
}

/// How specific the rule is that decided.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Specificity {
    /// Step A: for this origin and this application.
    AppAndApplication,
    /// Step B: for everybody and this application.
    Application,
    /// Step C: for this origin and all applications.
    App,
    /// Step D: for everybody and all applications.
    Nothing,
}

/// Why there is no access.
#[derive(Clone, Copy, Debug, Eq, Hash, thiserror::Error, PartialEq)]
pub enum Denial {
    /// A rule says so, or says nothing about commands.
    #[error("a rule denies it")]
    Rule(Specificity),
    /// The application, or all applications together, have rules for others only.
    #[error("the rules allow it to others only")]
    OthersOnly,
    /// No rule applies.
    #[error("no rule allows it")]
    NoRule,
    /// There are rules for particular applications, and the card does not say whether the selected
    /// one is among them, or says what cannot be.
    #[error("the card does not name the selected application")]
    Unnamed,
}

impl Denial {
    /// Whether the rules name the origin itself: only then may it learn that the application is
    /// there.
    pub const fn names_app(self) -> bool {
        matches!(
            self,
            Self::Rule(Specificity::AppAndApplication | Specificity::App)
        )
    }
}

/// What somebody may do with an application.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Access {
    /// Nothing: no channel either.
    Never(Denial),
    /// Everything.
    Always,
    /// A channel, and the commands that a filter matches.
    Filters(Arc<Filters>),
}

impl Access {
    /// Whether a channel may be opened.
    pub const fn allows_channel(&self) -> bool {
        !matches!(self, Self::Never(_))
    }

    /// Whether a command may be sent. The class byte of its header must be without a channel
    /// ([`without_channel`](crate::class_byte::without_channel)). Of a chain, ask for each command.
    pub fn allows_command(&self, header: Header) -> bool {
        match self {
            Self::Never(_) => false,
            Self::Always => true,
            Self::Filters(filters) => filters.match_header(header),
        }
    }
}

/// The rules of one element, combined and arranged.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    all: Entry,
    implicit: Entry,
    applications: HashMap<Aid, Entry>,
    /// The keys of `applications`, ascending: those with a common beginning are neighbours.
    names: Vec<Aid>,
    /// The applications with a rule that allows them to this origin, or to everybody; ascending.
    /// Another rule may take that back.
    allowed: HashMap<AppRef, Vec<Aid>>,
}

/// The rules of one application, or those about all.
#[derive(Clone, Debug, Default)]
struct Entry {
    everybody: Option<Combined>,
    apps: HashMap<AppRef, Combined>,
}

/// What the rules of the same references say together.
#[derive(Clone, Debug)]
enum Combined {
    Never,
    Always,
    Filters(Arc<Filters>),
}

impl RuleSet {
    /// Combines and arranges rules. Their order makes no difference.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        let mut pairs: HashMap<(AidRef, AppRef), Combination> = HashMap::new();
        for rule in rules {
            let combination = pairs.entry((rule.aid, rule.app)).or_default();
            combination.add(rule.apdu);
        }
        let mut set = Self::default();
        for ((aid, app), combination) in pairs {
            let combined = combination.finish();
            let entry = match aid {
                AidRef::All => &mut set.all,
                AidRef::Implicit => &mut set.implicit,
                AidRef::Aid(aid) => {
                    if !matches!(combined, Combined::Never) {
                        set.allowed.entry(app).or_default().push(aid);
                    }
                    set.applications.entry(aid).or_default()
                }
            };
            match app {
                AppRef::All => entry.everybody = Some(combined),
                app => {
                    entry.apps.insert(app, combined);
                }
            }
        }
        set.names = set.applications.keys().copied().collect();
        sort(&mut set.names);
        set.allowed.values_mut().for_each(|aids| sort(aids));
        set
    }

    /// Whether there is no rule at all, and so no access.
    pub fn is_empty(&self) -> bool {
        self.applications.is_empty() && self.implicit.is_empty() && self.all.is_empty()
    }

    /// What an origin may do with an application that is known by its complete AID, or with the
    /// implicitly selected one.
    pub fn channel_access(&self, target: Target, app: &AppId) -> Access {
        let entry = match target {
            Target::Application(aid) => self.applications.get(&aid),
            Target::Implicit => Some(&self.implicit),
        };
        entry
            .and_then(|entry| {
                let (a, b) = (Specificity::AppAndApplication, Specificity::Application);
                entry.decide(app, a, b)
            })
            .unwrap_or_else(|| self.access_to_unnamed(app))
    }

    /// Steps C and D.
    fn access_to_unnamed(&self, app: &AppId) -> Access {
        self.all
            .decide(app, Specificity::App, Specificity::Nothing)
            .unwrap_or(Access::Never(Denial::NoRule))
    }

    /// Before SELECT: whether there may be an application that an origin may use and that SELECT
    /// with this complete or partial AID may select. Empty is SELECT without an AID. If not, the
    /// card need not be asked. If so, [`RuleSet::access_after_select`] decides.
    pub fn may_select(&self, requested: &[u8], app: &AppId) -> bool {
        if requested.len() > Aid::MAX_LENGTH {
            return false;
        }
        if requested.len() == Aid::MAX_LENGTH {
            return Aid::new(requested).is_ok_and(|aid| {
                let access = self.channel_access(Target::Application(aid), app);
                access.allows_channel()
            });
        }
        // Applications without a rule of their own come first: then nothing has to be searched.
        self.access_to_unnamed(app).allows_channel()
            || app_refs(app).chain([AppRef::All]).any(|reference| {
                self.allowed.get(&reference).is_some_and(|aids| {
                    beginning_with(aids, requested).iter().any(|&aid| {
                        let access = self.channel_access(Target::Application(aid), app);
                        access.allows_channel()
                    })
                })
            })
    }

    /// After SELECT, first or next: what an origin may do with the application that was selected by
    /// this complete or partial AID (empty without one), given the DF name that the card reported.
    ///
    /// A partial AID must not open an application that has a rule against it. So the DF name
    /// decides. Without one, any application could be the one: there is no access if rules are about
    /// particular applications, unless the AID has 16 bytes and thereby is complete. A DF name that
    /// SELECT cannot have found is no name.
    pub fn access_after_select(
        &self,
        requested: &[u8],
        df_name: Option<&Aid>,
        app: &AppId,
    ) -> Access {
        let name = match df_name {
            Some(name) if name.as_bytes().starts_with(requested) => Some(*name),
            Some(_) => return Access::Never(Denial::Unnamed),
            None if requested.len() == Aid::MAX_LENGTH => Aid::new(requested).ok(),
            None => None,
        };
        match name {
            Some(name) => self.channel_access(Target::Application(name), app),
            None if self.names.is_empty() && self.implicit.is_empty() => {
                self.access_to_unnamed(app)
            }
            None => Access::Never(Denial::Unnamed),
        }
    }

    /// The same for rules whose author knew the application only by the AID to select it with, on a
    /// card that names none: whoever writes a rule for a card without rules of its own. The AID that
    /// was asked for decides, unless there is a rule about a longer one that begins with it.
    pub fn access_as_requested(&self, requested: &[u8], app: &AppId) -> Access {
        let Ok(aid) = Aid::new(requested) else {
            return Access::Never(Denial::Unnamed);
        };
        let has_longer = beginning_with(&self.names, requested)
            .iter()
            .any(|name| *name != aid);
        if has_longer {
            Access::Never(Denial::Unnamed)
        } else {
            self.channel_access(Target::Application(aid), app)
        }
    }
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.everybody.is_none() && self.apps.is_empty()
    }

    /// A step about the origin, and one about everybody. `None` if neither decides.
    fn decide(&self, app: &AppId, of_app: Specificity, of_all: Specificity) -> Option<Access> {
        if let Some(rule) = app_refs(app).find_map(|reference| self.apps.get(&reference)) {
            return Some(rule.access(of_app));
        }
        if !self.apps.is_empty() {
            return Some(Access::Never(Denial::OthersOnly));
        }
        self.everybody.as_ref().map(|rule| rule.access(of_all))
    }
}

impl Combined {
    fn access(&self, specificity: Specificity) -> Access {
        match self {
            Self::Never => Access::Never(Denial::Rule(specificity)),
            Self::Always => Access::Always,
            Self::Filters(filters) => Access::Filters(Arc::clone(filters)),
        }
    }
}

/// The APDU rules of the same references.
#[derive(Default)]
struct Combination {
    never: bool,
    always: bool,
    filters: Option<Vec<Filter>>,
}

impl Combination {
    fn add(&mut self, rule: Option<ApduRule>) {
        match rule {
            None => {}
            Some(ApduRule::Never) => self.never = true,
            Some(ApduRule::Always) => self.always = true,
            Some(ApduRule::Filters(filters)) => {
                self.filters.get_or_insert_default().extend(filters);
            }
        }
    }

    fn finish(self) -> Combined {
        match self {
            Self { never: true, .. } => Combined::Never,
            Self {
                filters: Some(filters),
                ..
            } => Combined::Filters(Arc::new(filters.into_iter().collect())),
            Self { always: true, .. } => Combined::Always,
            _ => Combined::Never,
        }
    }
}

/// How rules may name the origin, the one that counts first.
fn app_refs(app: &AppId) -> impl Iterator<Item = AppRef> {
    let sha256 = app.sha256().map(|hash| AppRef::Sha256(*hash));
    let sha1 = app.sha1().map(|hash| AppRef::Sha1(*hash));
    sha256.into_iter().chain(sha1)
}

fn sort(aids: &mut [Aid]) {
    aids.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
}

/// Those of ascending AIDs that begin with `prefix`.
fn beginning_with<'a>(aids: &'a [Aid], prefix: &[u8]) -> &'a [Aid] {
    let start = aids.partition_point(|aid| aid.as_bytes() < prefix);
    let rest = aids.get(start..).unwrap_or_default();
    let length = rest.partition_point(|aid| aid.as_bytes().starts_with(prefix));
    rest.get(..length).unwrap_or_default()
}
