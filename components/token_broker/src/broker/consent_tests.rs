/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Consent, as a page and its user meet it: the broker with cards in software.

use token_traits::Connection;
use token_traits::control::AccessConfig;
use token_traits::prompt::{GrantInfo, GrantKind, PromptReader, Question};
use virtual_card::VirtualCard;
use virtual_card::applets::ara_m::AraM;
use virtual_card::applets::{echo, issuer};

use super::tests::*;
use super::*;
use crate::access::grants::{Grant, Lasts, ReaderName, Subject};

const SHOP: &str = "https://shop.example";
const FIDO: [u8; 8] = [0xA0, 0x00, 0x00, 0x06, 0x47, 0x2F, 0x00, 0x01];

fn slot() -> WorkerKind {
    WorkerKind::PcscReader {
        reader: "Slot".into(),
    }
}

/// An embedded card without rules, and a card without rules in the PC/SC reader "Slot", if it is `present`.
fn rig(present: bool) -> (Rig, WorkerId) {
    let access = AccessConfig {
        device_rules: String::new(),
        when_no_rules: Some(WhenNoRules::Ask),
    };
    let no_rules = || VirtualCard::from_profile("no-rules").unwrap();
    let mut rig = Rig::without_grants(access, no_rules());
    rig.insert_card(slot(), no_rules());
    // Somebody makes the monitor start.
    rig.input(Input::GetOverview(0));
    let monitor = rig.start_worker().unwrap();
    rig.monitor_says(monitor, vec![status("Slot", present)]);
    rig.overviews.clear();
    (rig, monitor)
}

impl Rig {
    fn page(&mut self) -> PortId {
        let number = self.next_port();
        self.open_port(number, ORIGIN)
    }

    /// The one prompt that the user sees.
    fn prompt(&self) -> PromptRequest {
        let [prompt] = &self.prompts.values().collect::<Vec<_>>()[..] else {
            panic!("{:?}", self.prompts);
        };
        (*prompt).clone()
    }

    fn offered(&self) -> Vec<PromptReader> {
        match self.prompt().question {
            Question::ChooseReader { readers } => readers,
            other => panic!("{other:?}"),
        }
    }

    fn say(&mut self, answer: PromptAnswer) {
        let prompt = self.prompt().id;
        self.prompts.remove(&prompt);
        self.input(Input::PromptAnswered { prompt, answer });
        self.settle();
    }

    fn choose(&mut self, name: &str, remember: bool) {
        let index = self.offered().iter().position(|reader| reader.name == name);
        let index = u32::try_from(index.expect(name)).unwrap();
        self.say(PromptAnswer::Chosen { index, remember });
    }

    /// Asks for the readers where that needs a prompt.
    fn ask_readers(&mut self, port: PortId) -> RequestId {
        self.is_active = true;
        let request = self.send(port, RequestBody::GetReaders);
        self.settle();
        request
    }

    /// The names that were answered, if it has been.
    fn names(&mut self, port: PortId, request: RequestId) -> Option<Vec<String>> {
        match self.take(port, request)? {
            Ok(ReplyBody::Readers(readers)) => {
                Some(readers.into_iter().map(|reader| reader.name).collect())
            }
            other => panic!("{other:?}"),
        }
    }

    /// The reader "Slot" is chosen for a page.
    fn give_slot(&mut self, port: PortId, remember: bool) -> ReaderId {
        let request = self.ask_readers(port);
        self.choose("Slot", remember);
        match self.take(port, request) {
            Some(Ok(ReplyBody::Readers(readers))) => readers[0].id,
            other => panic!("{other:?}"),
        }
    }

    fn slot_session(&mut self, port: PortId, remember: bool) -> SessionId {
        let reader = self.give_slot(port, remember);
        match self.ask(port, RequestBody::OpenSession(reader)) {
            Ok(ReplyBody::Session(session)) => session.id,
            other => panic!("{other:?}"),
        }
    }

    fn query(&mut self, port: PortId, feature: Feature) -> PermissionState {
        match self.ask(port, RequestBody::QueryPermission(feature)) {
            Ok(ReplyBody::Permission(state)) => state,
            other => panic!("{other:?}"),
        }
    }

    fn overview(&mut self) -> Overview {
        self.input(Input::GetOverview(9));
        let (id, overview) = self.overviews.pop().unwrap();
        assert_eq!(id, 9);
        overview
    }

    fn decisions(&mut self) -> Vec<String> {
        let audit = self.overview().audit;
        audit.into_iter().map(|entry| entry.decision).collect()
    }

    fn close_port(&mut self, port: PortId) {
        self.input(Input::ClosePort(port));
    }
}

#[test]
fn a_page_that_nobody_touches_learns_nothing() {
    let (mut rig, _) = rig(true);
    let port = rig.page();
    assert!(rig.readers(port).is_empty());
    assert!(rig.prompts.is_empty());
    assert!(rig.workers_are_idle());
    rig.ask(port, RequestBody::WatchElements).unwrap();
    assert!(rig.told().is_empty());
    // The main process does not answer: neither is there a prompt.
    let request = rig.send(port, RequestBody::GetReaders);
    assert_eq!(rig.activations.len(), 1);
    rig.activations.clear();
    rig.tick();
    assert_eq!(rig.names(port, request), Some(vec![]));
    assert!(rig.decisions().is_empty());
}

#[test]
fn the_user_chooses_the_reader_that_an_origin_sees() {
    let (mut rig, _) = rig(true);
    let port = rig.page();
    let request = rig.ask_readers(port);
    assert_eq!(rig.names(port, request), None);
    let prompt = rig.prompt();
    assert_eq!(prompt.origin.as_str(), ORIGIN);
    assert_eq!(prompt.top_level_origin.as_str(), ORIGIN);
    assert_eq!(prompt.webview, 1);
    let names: Vec<_> = rig
        .offered()
        .into_iter()
        .map(|reader| reader.name)
        .collect();
    assert_eq!(names, ["Embedded virtual card", "Slot"]);
    rig.choose("Slot", false);
    assert_eq!(rig.names(port, request), Some(vec!["Slot".to_owned()]));
    // It is not asked again, and sees no other.
    assert_eq!(rig.readers(port).len(), 1);
    assert!(rig.prompts.is_empty());
    assert!(
        rig.decisions()
            .contains(&"reader allowed by the user".to_owned())
    );
    // Nothing of it is for another origin, nor to be remembered.
    rig.is_active = false;
    let number = rig.next_port();
    let shop = rig.open_port(number, SHOP);
    assert!(rig.readers(shop).is_empty());
    assert!(
        !rig.stored
            .iter()
            .any(|write| matches!(write, Write::Grant(..)))
    );
}

#[test]
fn a_refusal_is_an_empty_list() {
    let (mut rig, _) = rig(true);
    let port = rig.page();
    for (answer, is_noted) in [
        (PromptAnswer::NotAsked, false),
        (PromptAnswer::Allowed { remember: true }, false),
        (
            PromptAnswer::Chosen {
                index: 2,
                remember: true,
            },
            false,
        ),
        (
            PromptAnswer::Chosen {
                index: u32::MAX,
                remember: true,
            },
            false,
        ),
        (PromptAnswer::Refused, true),
    ] {
        let request = rig.ask_readers(port);
        rig.say(answer);
        assert_eq!(rig.names(port, request), Some(vec![]));
        assert_eq!(rig.decisions().len(), usize::from(is_noted));
    }
    assert!(rig.overview().grants.is_empty());
}

#[test]
fn answers_that_nobody_waits_for_change_nothing() {
    let (mut rig, _) = rig(true);
    let port = rig.page();
    let yes = PromptAnswer::Chosen {
        index: 1,
        remember: true,
    };
    // Before it is known whether a prompt may be shown.
    let request = rig.send(port, RequestBody::GetReaders);
    let (prompt, webview) = rig.activations.pop().unwrap();
    assert_eq!(webview, 1);
    rig.input(Input::PromptAnswered {
        prompt,
        answer: yes.clone(),
    });
    assert_eq!(rig.names(port, request), None);
    rig.input(Input::Activation {
        prompt,
        is_active: true,
    });
    // Twice, and for another prompt.
    rig.input(Input::Activation {
        prompt,
        is_active: false,
    });
    rig.input(Input::PromptAnswered {
        prompt: PromptId(prompt.0 + 1),
        answer: yes.clone(),
    });
    assert_eq!(rig.names(port, request), None);
    rig.choose("Slot", false);
    assert!(rig.names(port, request).is_some());
    rig.input(Input::PromptAnswered {
        prompt,
        answer: yes,
    });
    assert_eq!(rig.overview().grants.len(), 1);
}

#[test]
fn the_chooser_shows_what_comes_and_goes() {
    let (mut rig, monitor) = rig(true);
    let port = rig.page();
    let request = rig.ask_readers(port);
    let first = rig.prompt().id;
    rig.monitor_says(monitor, vec![]);
    assert_eq!(rig.offered().len(), 1);
    let second = rig.prompt();
    assert_eq!(second.replaces, Some(first));
    rig.monitor_says(monitor, vec![status("Other", true), status("Slot", false)]);
    assert_eq!(rig.offered().len(), 3);
    assert_eq!(rig.prompt().replaces, Some(second.id));
    assert!(!rig.offered()[2].present);
    // What was answered before the readers changed is about other ones.
    for prompt in [first, second.id] {
        let answer = PromptAnswer::Chosen {
            index: 0,
            remember: true,
        };
        rig.input(Input::PromptAnswered { prompt, answer });
    }
    assert_eq!(rig.names(port, request), None);
    assert_eq!(rig.overview().grants.len(), 0);
    rig.choose("Slot", false);
    assert_eq!(rig.names(port, request), Some(vec!["Slot".to_owned()]));
}

#[test]
fn without_a_list_of_readers_the_prompt_waits_a_little() {
    let access = AccessConfig::default();
    let card = VirtualCard::from_profile("no-rules").unwrap();
    let mut rig = Rig::without_grants(access, card);
    let port = rig.page();
    rig.is_active = true;
    let request = rig.send(port, RequestBody::GetReaders);
    // Nothing is started for a page before the user has done something.
    assert_eq!(rig.start_worker(), None);
    let (prompt, _) = rig.activations.pop().unwrap();
    rig.input(Input::Activation {
        prompt,
        is_active: true,
    });
    assert!(rig.prompts.is_empty());
    let monitor = rig.start_worker().unwrap();
    rig.wait(MONITOR_TIMEOUT);
    assert_eq!(rig.offered().len(), 1);
    rig.monitor_says(monitor, vec![status("Slot", true)]);
    rig.choose("Slot", false);
    assert_eq!(rig.names(port, request), Some(vec!["Slot".to_owned()]));
}

#[test]
fn a_prompt_goes_with_the_document_and_after_a_while() {
    let (mut rig, _) = rig(true);
    let port = rig.page();
    rig.ask_readers(port);
    rig.prompt();
    rig.close_port(port);
    assert!(rig.prompts.is_empty());

    let port = rig.page();
    let request = rig.ask_readers(port);
    rig.wait(Duration::from_secs(299));
    rig.prompt();
    rig.wait(Duration::from_secs(2));
    assert!(rig.prompts.is_empty());
    assert_eq!(rig.names(port, request), Some(vec![]));
}

#[test]
fn one_prompt_answers_all_documents_of_a_party_in_a_tab() {
    let (mut rig, _) = rig(true);
    let (one, two) = (rig.page(), rig.page());
    let number = rig.next_port();
    let elsewhere = rig.open_port_as(
        number,
        PortIdentity {
            webview: 2,
            ..identity(ORIGIN)
        },
    );
    let first = rig.ask_readers(one);
    let again = rig.ask_readers(one);
    let other = rig.ask_readers(two);
    rig.prompt();
    rig.ask_readers(elsewhere);
    assert_eq!(rig.prompts.len(), 2);
    rig.close_port(elsewhere);
    rig.choose("Slot", false);
    let slot = || Some(vec!["Slot".to_owned()]);
    assert_eq!(rig.names(one, first), slot());
    assert_eq!(rig.names(one, again), slot());
    assert_eq!(rig.names(two, other), slot());
}

#[test]
fn a_grant_that_is_not_remembered_ends_with_the_card() {
    let (mut rig, monitor) = rig(true);
    let port = rig.page();
    let session = rig.slot_session(port, false);
    rig.monitor_says(monitor, vec![status("Slot", false)]);
    assert_eq!(
        rig.told(),
        [(port, ReaderId(0), false)],
        "it learns of that"
    );
    rig.monitor_says(monitor, vec![status("Slot", true)]);
    assert!(rig.told().is_empty());
    rig.is_active = false;
    assert!(rig.readers(port).is_empty());
    assert_eq!(
        error(rig.ask(port, RequestBody::OpenSession(ReaderId(0)))),
        ErrorKind::Security
    );
    assert_eq!(
        error(rig.ask(port, open(session, &echo::AID))),
        ErrorKind::Closed
    );
}

#[test]
fn a_grant_that_is_not_remembered_ends_with_the_last_document() {
    let (mut rig, _) = rig(true);
    let (one, two) = (rig.page(), rig.page());
    rig.give_slot(one, false);
    rig.is_active = false;
    rig.close_port(one);
    assert_eq!(rig.readers(two).len(), 1);
    // One of another party, and a private one, do not count.
    let number = rig.next_port();
    rig.open_port(number, SHOP);
    let private = PortIdentity {
        private: true,
        ..identity(ORIGIN)
    };
    let number = rig.next_port();
    rig.open_port_as(number, private);
    rig.close_port(two);
    let port = rig.page();
    assert!(rig.readers(port).is_empty());
}

#[test]
fn a_grant_that_is_remembered_outlives_everything_but_its_revocation() {
    let (mut rig, monitor) = rig(true);
    let port = rig.page();
    rig.give_slot(port, true);
    let remembered = rig.stored.iter().find_map(|write| match write {
        Write::Grant(id, grant) => Some((*id, grant.clone())),
        _ => None,
    });
    let (id, grant) = remembered.expect("a grant to be stored");
    assert_eq!(grant.lasts, Lasts::UntilRevoked);
    rig.is_active = false;
    rig.monitor_says(monitor, vec![]);
    rig.close_port(port);
    rig.told();
    let port = rig.page();
    rig.ask(port, RequestBody::WatchElements).unwrap();
    rig.monitor_says(monitor, vec![status("Slot", true)]);
    assert_eq!(rig.told(), [(port, ReaderId(0), true)]);

    // By another broker, which has read it.
    let (mut other, _) = self::rig(true);
    other.input(Input::Restore(
        Remembered {
            grants: vec![(id, grant)],
            audit: VecDeque::new(),
            ..Remembered::default()
        },
        SystemTime::now(),
    ));
    let port = other.page();
    assert_eq!(other.readers(port).len(), 1);
    other.input(Input::Revoke(id));
    assert!(other.readers(port).is_empty());
    assert!(other.stored.contains(&Write::Revoke(id)));
    assert!(
        other
            .decisions()
            .contains(&"revoked by the user".to_owned())
    );
    // Once more is no error.
    other.input(Input::Revoke(id));
}

#[test]
fn a_card_without_rules_has_its_applications_allowed_one_by_one() {
    let (mut rig, _) = rig(true);
    let port = rig.page();
    let session = rig.slot_session(port, false);
    // Nobody has touched the page since: the card is not asked.
    rig.is_active = false;
    rig.ask(port, open(session, b"\xF0ABSENT")).unwrap_err();
    let before = rig.commands(&slot());
    for aid in [&echo::AID[..], b"\xF0ABSENT"] {
        assert_eq!(
            error(rig.ask(port, open(session, aid))),
            ErrorKind::Security
        );
    }
    assert_eq!(rig.commands(&slot()), before);

    rig.is_active = true;
    // Without FCI, which would keep its name from the user.
    let request = rig.send(
        port,
        RequestBody::OpenChannel {
            session,
            channel_type: ChannelType::Supplementary,
            aid: Some(echo::AID[..7].to_vec()),
            p2: 0x0C,
        },
    );
    rig.settle();
    assert_eq!(
        rig.prompt().question,
        Question::UseApplet {
            reader: "Slot".into(),
            applet: Some(echo::AID.to_vec()),
        }
    );
    // The card is not held meanwhile.
    assert_eq!(rig.card_of(&slot()).open_channels(), 0);
    rig.say(PromptAnswer::Allowed { remember: false });
    assert!(rig.take(port, request).unwrap().is_ok());
    assert!(rig.ask(port, open(session, &echo::AID)).is_ok());
    assert!(rig.ask(port, open(session, &echo::AID[..7])).is_ok());
    assert!(rig.prompts.is_empty());
    // Its sibling is another.
    let request = rig.send(port, open(session, &echo::SECOND_AID));
    rig.settle();
    rig.say(PromptAnswer::Refused);
    // As if it were not there.
    let refused = rig.take(port, request).unwrap();
    assert_eq!(refused, rig.ask(port, open(session, b"\xF0ABSENT")));
    assert_eq!(error(refused), ErrorKind::NoApplication);
    // Neither is the embedded card's.
    let grants = rig.overview().grants;
    let applets = |grant: &&GrantInfo| matches!(grant.what, GrantKind::Applet { .. });
    assert_eq!(grants.iter().filter(applets).count(), 1);
}

/// A page that the user lets use the embedded card, which is this one.
fn chosen(access: AccessConfig, card: VirtualCard) -> (Rig, PortId, SessionId) {
    let mut rig = Rig::without_grants(access, card);
    rig.input(Input::GetOverview(0));
    let monitor = rig.start_worker().unwrap();
    rig.monitor_says(monitor, vec![]);
    rig.overviews.clear();
    let port = rig.page();
    rig.ask_readers(port);
    rig.choose("Embedded virtual card", false);
    let session = rig.open_session(port);
    (rig, port, session)
}

#[test]
fn nobody_has_to_do_anything_for_what_is_allowed_already() {
    let rules = "[[rule]]\norigin = \"*\"\naid = \"F0534552564F0102\"\napdu = \"always\"\n";
    let access = AccessConfig {
        device_rules: rules.to_owned(),
        when_no_rules: Some(WhenNoRules::Ask),
    };
    let no_rules = VirtualCard::from_profile("no-rules").unwrap();
    let (mut rig, port, session) = chosen(access, no_rules);
    let request = rig.send(port, open(session, &echo::AID));
    rig.settle();
    rig.say(PromptAnswer::Allowed { remember: false });
    assert!(rig.take(port, request).unwrap().is_ok());

    rig.is_active = false;
    for aid in [&echo::AID, &echo::SECOND_AID] {
        assert!(rig.ask(port, open(session, aid)).is_ok());
    }
    let other = rig.ask(port, open(session, &echo::WARNING_AID));
    assert_eq!(error(other), ErrorKind::Security);
}

fn rules_of_device(rules: &[(&str, &[u8])]) -> AccessConfig {
    let rule = |(origin, aid): &(&str, &[u8])| {
        let aid: String = aid.iter().map(|byte| format!("{byte:02X}")).collect();
        format!("[[rule]]\norigin = {origin:?}\naid = {aid:?}\napdu = \"always\"\n")
    };
    AccessConfig {
        device_rules: rules.iter().map(rule).collect(),
        when_no_rules: Some(WhenNoRules::Ask),
    }
}

#[test]
fn a_rule_for_somebody_else_is_no_matter_of_asking() {
    let access = rules_of_device(&[(SHOP, &echo::AID)]);
    let no_rules = VirtualCard::from_profile("no-rules").unwrap();
    let (mut rig, port, session) = chosen(access, no_rules);
    for aid in [&echo::AID[..], &echo::AID[..7]] {
        rig.is_active = true;
        let refused = rig.ask(port, open(session, aid));
        assert_eq!(error(refused), ErrorKind::Security);
        assert!(rig.prompts.is_empty());
    }
    assert_eq!(rig.card().open_channels(), 0);
}

#[test]
fn what_a_part_of_a_name_finds_is_asked_about_even_where_another_is_allowed() {
    let access = rules_of_device(&[(ORIGIN, &echo::SECOND_AID)]);
    let no_rules = VirtualCard::from_profile("no-rules").unwrap();
    let (mut rig, port, session) = chosen(access, no_rules);
    // One that begins so is allowed. The card finds the other one.
    let request = rig.send(port, open(session, &echo::AID[..7]));
    rig.settle();
    let asked = Question::UseApplet {
        reader: "Embedded virtual card".into(),
        applet: Some(echo::AID.to_vec()),
    };
    assert_eq!(rig.prompt().question, asked);
    assert_eq!(rig.card().open_channels(), 0);
    rig.say(PromptAnswer::Allowed { remember: false });
    assert!(rig.take(port, request).unwrap().is_ok());
    assert_eq!(rig.card().open_channels(), 1);
}

#[test]
fn a_reader_that_was_taken_back_is_gone_while_others_stay() {
    let (mut rig, _) = rig(true);
    let port = rig.page();
    let slot = rig.give_slot(port, false);
    let taken = rig.overview().grants[0].id.unwrap();
    rig.input(Input::Revoke(taken));
    let request = rig.ask_readers(port);
    rig.choose("Embedded virtual card", false);
    let names = rig.names(port, request).unwrap();
    assert_eq!(names, ["Embedded virtual card"]);
    let refused = rig.ask(port, RequestBody::OpenSession(slot));
    assert_eq!(error(refused), ErrorKind::Security);
    assert!(rig.workers_are_idle());
}

#[test]
fn a_prompt_for_readers_has_its_time() {
    let seconds = Duration::from_secs;
    let no_rules = VirtualCard::from_profile("no-rules").unwrap();
    let mut rig = Rig::without_grants(AccessConfig::default(), no_rules);
    let port = rig.page();
    rig.is_active = true;
    // The main process takes its time to say that the user has just done something.
    let request = rig.send(port, RequestBody::GetReaders);
    rig.wait(seconds(4));
    let [(prompt, _)] = rig.activations[..] else {
        panic!("{:?}", rig.activations);
    };
    rig.input(Input::Activation {
        prompt,
        is_active: true,
    });
    // The monitor takes its time to list PC/SC's readers, and then too much of it.
    rig.wait(seconds(2));
    assert!(rig.prompts.is_empty());
    rig.wait(seconds(2));
    assert_eq!(rig.offered().len(), 1);
    // The user takes a while.
    rig.wait(seconds(299));
    assert_eq!(rig.offered().len(), 1);
    assert_eq!(rig.take(port, request), None);
    rig.wait(seconds(2));
    assert!(rig.prompts.is_empty());
    assert_eq!(rig.names(port, request), Some(vec![]));

    // Once the readers are known, there is nothing to wait for.
    rig.activations.clear();
    rig.input(Input::GetOverview(0));
    let monitor = rig.start_worker().unwrap();
    rig.monitor_says(monitor, vec![]);
    let request = rig.ask_readers(port);
    rig.wait(seconds(299));
    assert_eq!(rig.offered().len(), 1);
    rig.choose("Embedded virtual card", false);
    assert_eq!(rig.names(port, request).unwrap().len(), 1);

    // A main process that says nothing.
    let other = rig.next_port();
    let other = rig.open_port(other, SHOP);
    let request = rig.send(other, RequestBody::GetReaders);
    rig.wait(seconds(6));
    assert_eq!(rig.names(other, request), Some(vec![]));
}

#[test]
fn a_prompt_for_an_application_has_its_time() {
    let seconds = Duration::from_secs;
    let no_rules = || VirtualCard::from_profile("no-rules").unwrap();
    for answers_late in [false, true] {
        let (mut rig, port, session) = chosen(rules_of_device(&[]), no_rules());
        let request = rig.send(port, open(session, &echo::AID));
        let worker = rig.worker(&embedded()).unwrap();
        while rig.activations.is_empty() {
            assert!(rig.answer(worker));
        }
        rig.wait(seconds(4));
        assert_eq!(rig.take(port, request), None);
        if answers_late {
            rig.wait(seconds(2));
            assert_eq!(rig.kind(port, request), Some(ErrorKind::Security));
            continue;
        }
        rig.settle();
        rig.wait(seconds(299));
        rig.prompt();
        assert_eq!(rig.take(port, request), None);
        rig.wait(seconds(2));
        assert!(rig.prompts.is_empty());
        assert_eq!(rig.kind(port, request), Some(ErrorKind::NoApplication));
        // That was nobody's decision. This is the user's.
        let refused = "application refused by the user";
        assert!(!rig.decisions().iter().any(|one| one == refused));
        let request = rig.send(port, open(session, &echo::AID));
        rig.settle();
        rig.say(PromptAnswer::Refused);
        assert_eq!(rig.kind(port, request), Some(ErrorKind::NoApplication));
        assert!(rig.decisions().iter().any(|one| one == refused));
    }
}

#[test]
fn the_log_says_whose_rules_refused_it() {
    let element = |card: VirtualCard| {
        let (mut rig, port, session) = chosen(AccessConfig::default(), card);
        rig.ask(port, open(session, &echo::SECOND_AID)).unwrap_err();
        let decisions = rig.decisions();
        let refused = decisions.into_iter().find(|one| one.starts_with("refused"));
        refused.unwrap()
    };
    let with = |rules: AraM| {
        let mut card = VirtualCard::from_profile("default").unwrap();
        card.install(Box::new(rules));
        element(card)
    };
    assert_eq!(with(AraM::sample()), "refused by the card's rules");
    assert_eq!(
        with(AraM::with_rules(vec![0xE2])),
        "refused: the card's rules cannot be read"
    );
    let none = element(VirtualCard::from_profile("no-rules").unwrap());
    assert_eq!(none, "refused: no rule of this device allows it");
}

#[test]
fn what_no_prompt_opens() {
    let (mut rig, _) = rig(true);
    let port = rig.page();
    let session = rig.slot_session(port, true);
    let before = rig.commands(&slot());
    let piv = [0xA0, 0x00, 0x00, 0x03, 0x08, 0x00, 0x00, 0x10, 0x00];
    for aid in [&issuer::AID[..], &[], &FIDO, &FIDO[..5], &piv, &piv[..5]] {
        for basic in [false, true] {
            let body = match basic {
                true => open_basic(session, Some(aid)),
                false => open(session, aid),
            };
            assert_eq!(
                error(rig.ask(port, body)),
                ErrorKind::Security,
                "{aid:02X?}"
            );
        }
    }
    let implicit = open_basic(session, None);
    assert_eq!(error(rig.ask(port, implicit)), ErrorKind::Security);
    assert!(rig.prompts.is_empty());
    // The rules were looked for, once. Nothing else was sent.
    assert!(rig.commands(&slot()) <= before + 4);
}

#[test]
fn a_rule_of_the_users_does_not_open_what_no_prompt_opens() {
    let (mut rig, _) = rig(true);
    let party = Party::of(&identity(ORIGIN));
    let grant = |subject| Grant {
        party: party.clone(),
        subject,
        lasts: Lasts::UntilRevoked,
        created: SystemTime::UNIX_EPOCH,
        last_used: None,
    };
    let reader = Subject::Reader(ReaderName::Pcsc("Slot".into()));
    let security_domain = Subject::Applet(Aid::new(&issuer::AID).unwrap());
    rig.input(Input::Restore(
        Remembered {
            grants: vec![
                (GrantId(1), grant(reader)),
                (GrantId(2), grant(security_domain)),
            ],
            audit: VecDeque::new(),
            ..Remembered::default()
        },
        SystemTime::now(),
    ));
    let port = rig.page();
    let session = rig.open_session(port);
    rig.is_active = true;
    assert_eq!(
        error(rig.ask(port, open(session, &issuer::AID))),
        ErrorKind::Security
    );
}

#[test]
fn who_loses_a_grant_loses_what_is_open() {
    let (mut rig, _) = rig(true);
    let port = rig.page();
    let session = rig.slot_session(port, true);
    let request = rig.send(port, open(session, &echo::AID));
    rig.settle();
    rig.say(PromptAnswer::Allowed { remember: true });
    let Some(Ok(ReplyBody::Channel(channel))) = rig.take(port, request) else {
        panic!("no channel");
    };
    let send = |channel| RequestBody::Transmit {
        channel,
        command: Command::Raw(vec![0x00, 0x10, 0, 0]),
        timeout_ms: None,
    };
    rig.ask(port, send(channel.id)).unwrap();
    let id_of = |rig: &mut Rig, wanted: fn(&GrantKind) -> bool| {
        let grants = rig.overview().grants;
        grants
            .into_iter()
            .find(|grant| wanted(&grant.what))
            .and_then(|grant| grant.id)
    };
    let applet = id_of(&mut rig, |what| matches!(what, GrantKind::Applet { .. })).unwrap();
    rig.input(Input::Revoke(applet));
    rig.settle();
    assert_eq!(error(rig.ask(port, send(channel.id))), ErrorKind::Closed);
    assert_eq!(rig.card_of(&slot()).open_channels(), 0);
    // The session is still there, and the user is asked again.
    let request = rig.send(port, open(session, &echo::AID));
    rig.settle();
    rig.prompt();
    let reader = id_of(&mut rig, |what| matches!(what, GrantKind::Reader { .. })).unwrap();
    rig.input(Input::Revoke(reader));
    assert!(rig.prompts.is_empty());
    assert_eq!(rig.kind(port, request), Some(ErrorKind::Closed));
    assert_eq!(
        error(rig.ask(port, open(session, &echo::AID))),
        ErrorKind::Closed
    );
}

#[test]
fn a_prompt_for_an_application_ends_with_its_session() {
    let (mut rig, monitor) = rig(true);
    let port = rig.page();
    let session = rig.slot_session(port, true);
    let request = rig.send(port, open(session, &echo::AID));
    rig.settle();
    rig.prompt();
    rig.ask(port, RequestBody::CloseSession(session)).unwrap();
    assert!(rig.prompts.is_empty());
    assert_eq!(rig.kind(port, request), Some(ErrorKind::Closed));

    let Ok(ReplyBody::Session(session)) = rig.ask(port, RequestBody::OpenSession(ReaderId(0)))
    else {
        panic!("no session");
    };
    let request = rig.send(port, open(session.id, &echo::AID));
    rig.settle();
    rig.prompt();
    rig.monitor_says(monitor, vec![]);
    assert!(rig.prompts.is_empty());
    assert_eq!(rig.kind(port, request), Some(ErrorKind::Closed));
}

#[test]
fn uicc_and_embedded_elements_are_not_asked_about() {
    let card = VirtualCard::from_profile("no-rules").unwrap();
    let mut rig = Rig::without_grants(AccessConfig::default(), card);
    rig.grant(ORIGIN, true);
    let port = rig.page();
    rig.is_active = true;
    let request = rig.send(port, RequestBody::GetReaders);
    let monitor = rig.start_worker().unwrap();
    rig.monitor_says(monitor, vec![]);
    assert!(rig.take(port, request).is_some());
    let session = rig.open_session(port);
    assert_eq!(
        error(rig.ask(port, open(session, &echo::AID))),
        ErrorKind::Security
    );
    assert!(rig.prompts.is_empty());
}

#[test]
fn who_may_never_be_asked_for() {
    let (mut rig, _) = rig(true);
    rig.is_active = true;
    let insecure = |connection| PortIdentity {
        connection,
        ..identity(ORIGIN)
    };
    let private = PortIdentity {
        private: true,
        ..identity(ORIGIN)
    };
    for identity in [
        insecure(Connection::Insecure),
        insecure(Connection::HttpsWithException),
        private,
    ] {
        for granted in [false, true] {
            rig.grant(ORIGIN, granted);
            let number = rig.next_port();
            let port = rig.open_port_as(number, identity.clone());
            assert!(rig.readers(port).is_empty());
            let session = RequestBody::OpenSession(ReaderId(0));
            assert_eq!(error(rig.ask(port, session)), ErrorKind::Security);
            let expected = match identity.private {
                true => PermissionState::Prompt,
                false => PermissionState::Denied,
            };
            assert_eq!(rig.query(port, Feature::SecureElement), expected);
        }
    }
    assert!(rig.prompts.is_empty() && rig.told().is_empty());
}

#[test]
fn the_permissions_policy_comes_first() {
    let (mut rig, _) = rig(true);
    rig.is_active = true;
    rig.grant(ORIGIN, true);
    let others = Feature::ALL
        .into_iter()
        .filter(|feature| *feature != Feature::SecureElement);
    let without = PortIdentity {
        features: others.collect(),
        ..identity(ORIGIN)
    };
    let number = rig.next_port();
    let port = rig.open_port_as(number, without);
    for body in [
        RequestBody::GetReaders,
        RequestBody::WatchElements,
        RequestBody::OpenSession(ReaderId(0)),
        RequestBody::Shutdown,
    ] {
        assert_eq!(error(rig.ask(port, body)), ErrorKind::NotAllowed);
    }
    assert!(rig.told().is_empty());
    assert_eq!(
        rig.query(port, Feature::SecureElement),
        PermissionState::Denied
    );
    assert_eq!(rig.query(port, Feature::TokenKeys), PermissionState::Prompt);
    assert_eq!(rig.query(port, Feature::Payment), PermissionState::Denied);
}

#[test]
fn automation_answers_beforehand() {
    let (mut rig, _) = rig(true);
    rig.is_active = true;
    let party = || {
        let origin = Origin::new(ORIGIN).unwrap();
        (origin.clone(), origin)
    };
    let set = |rig: &mut Rig, state| {
        let (origin, top_level_origin) = party();
        rig.input(Input::SetPermission {
            origin,
            top_level_origin,
            feature: Feature::SecureElement,
            state,
        });
    };
    let port = rig.page();
    assert_eq!(
        rig.query(port, Feature::SecureElement),
        PermissionState::Prompt
    );
    set(&mut rig, PermissionState::Granted);
    assert_eq!(rig.readers(port).len(), 2);
    assert_eq!(
        rig.query(port, Feature::SecureElement),
        PermissionState::Granted
    );
    let session = rig.open_session(port);
    assert!(rig.ask(port, open(session, &echo::AID)).is_ok());
    let never = open(session, &issuer::AID);
    assert_eq!(error(rig.ask(port, never)), ErrorKind::Security);

    set(&mut rig, PermissionState::Denied);
    assert_eq!(
        error(rig.ask(port, open(session, &echo::AID))),
        ErrorKind::Closed
    );
    assert!(rig.readers(port).is_empty());
    assert_eq!(
        rig.query(port, Feature::SecureElement),
        PermissionState::Denied
    );
    let automation = GrantKind::Automation { allowed: false };
    assert!(
        rig.overview()
            .grants
            .iter()
            .any(|grant| grant.what == automation)
    );
    assert!(rig.prompts.is_empty());

    set(&mut rig, PermissionState::Prompt);
    rig.ask_readers(port);
    rig.choose("Slot", false);
    assert_eq!(
        rig.query(port, Feature::SecureElement),
        PermissionState::Granted
    );
}

#[test]
fn the_page_of_tokens_shows_what_is_allowed_and_what_happened() {
    let rules = r#"
        [[rule]]
        origin = "https://bank.example"
        aid = "F053455256"
        apdu = "never"
    "#;
    let access = AccessConfig {
        device_rules: rules.to_owned(),
        when_no_rules: Some(WhenNoRules::Ask),
    };
    let card = VirtualCard::from_profile("no-rules").unwrap();
    let mut rig = Rig::without_grants(access, card);
    rig.input(Input::Restore(
        Remembered::default(),
        SystemTime::UNIX_EPOCH + Duration::from_secs(1000),
    ));
    rig.wait(Duration::from_secs(5));
    let overview = rig.overview();
    let monitor = rig.start_worker().expect("the monitor is wanted");
    assert_eq!(overview.readers.len(), 1);
    let rule = GrantInfo {
        id: None,
        origin: Origin::new(ORIGIN),
        top_level_origin: None,
        what: GrantKind::Applet {
            applet: Some(vec![0xF0, 0x53, 0x45, 0x52, 0x56]),
            allowed: false,
        },
        remembered: true,
        created: None,
        last_used: None,
    };
    assert_eq!(overview.grants, [rule]);
    rig.monitor_says(monitor, vec![status("Slot", true)]);
    let port = rig.page();
    rig.slot_session(port, true);
    let overview = rig.overview();
    assert_eq!(overview.readers.len(), 2);
    let grant = &overview.grants[0];
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1005);
    assert!(grant.remembered && grant.created == Some(at) && grant.last_used == Some(at));
    assert_eq!(
        grant.what,
        GrantKind::Reader {
            reader: "Slot".into()
        }
    );
    // The newest first, and the same within a minute once.
    rig.ask(port, RequestBody::OpenSession(ReaderId(0)))
        .unwrap();
    assert_eq!(
        rig.decisions(),
        ["session opened", "reader allowed by the user"]
    );
    rig.wait(Duration::from_secs(61));
    rig.ask(port, RequestBody::OpenSession(ReaderId(0)))
        .unwrap();
    assert_eq!(rig.decisions().len(), 3);
    let audited = |write: &&Write| matches!(write, Write::Audit(_));
    assert_eq!(rig.stored.iter().filter(audited).count(), 3);
    rig.input(Input::StoreProblem(Some("the disk is full".into())));
    assert_eq!(rig.overview().problem.as_deref(), Some("the disk is full"));
    rig.input(Input::StoreProblem(None));
    assert_eq!(rig.overview().problem, None);
}

#[test]
fn a_page_that_asks_again_and_again_does_not_fill_the_way_to_the_main_process() {
    let (mut rig, _) = rig(true);
    let port = rig.page();
    let requests: Vec<RequestId> = (0..200)
        .map(|_| rig.send(port, RequestBody::GetReaders))
        .collect();
    let next = rig.page();
    let of_next = rig.send(next, RequestBody::GetReaders);
    assert_eq!(rig.names(next, of_next), Some(vec![]));
    assert_eq!(rig.activations.len(), 16);
    // Those who share no process with it are asked about.
    let number = rig.next_port();
    let other = rig.open_port_as(
        number,
        PortIdentity {
            event_loop: 2,
            ..identity(ORIGIN)
        },
    );
    let of_other = rig.send(other, RequestBody::GetReaders);
    assert_eq!(rig.activations.len(), 17);
    for (prompt, _) in std::mem::take(&mut rig.activations) {
        rig.input(Input::Activation {
            prompt,
            is_active: false,
        });
    }
    for request in requests {
        assert_eq!(rig.names(port, request), Some(vec![]));
    }
    assert_eq!(rig.names(other, of_other), Some(vec![]));
}

/// A clock that is wrong when the broker starts, or was when something was remembered.
#[test]
fn the_time_of_day_decides_nothing() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let latest = SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(i64::MAX as u64))
        .expect("a time");
    for remembered_at in [SystemTime::UNIX_EPOCH, at(2_000_000_000), latest] {
        for started_at in [
            SystemTime::UNIX_EPOCH,
            at(1_000),
            at(1_999_999_990),
            at(3_000_000_000),
        ] {
            let (mut rig, _) = rig(true);
            let bank = Origin::new(ORIGIN).unwrap();
            let grant = Grant {
                party: Party {
                    origin: bank.clone(),
                    top_level_origin: bank.clone(),
                },
                subject: Subject::Reader(ReaderName::Pcsc("Slot".into())),
                lasts: Lasts::UntilRevoked,
                created: remembered_at,
                last_used: Some(remembered_at),
            };
            let entry = AuditEntry {
                time: remembered_at,
                origin: bank,
                reader: "Slot".into(),
                applet: None,
                decision: "session opened".into(),
            };
            rig.input(Input::Restore(
                Remembered {
                    grants: vec![(GrantId(1), grant)],
                    audit: [entry].into(),
                    ..Remembered::default()
                },
                started_at,
            ));
            let port = rig.page();
            let request = rig.send(port, RequestBody::GetReaders);
            assert_eq!(rig.names(port, request), Some(vec!["Slot".to_owned()]));
            rig.ask(port, RequestBody::OpenSession(ReaderId(0)))
                .unwrap();
            // It is noted, unless that has just been done.
            let is_noted = rig
                .stored
                .iter()
                .any(|write| matches!(write, Write::Audit(_)));
            let age = started_at.duration_since(remembered_at);
            let has_just_been = age.is_ok_and(|age| age < Duration::from_secs(60));
            assert_eq!(
                is_noted, !has_just_been,
                "{remembered_at:?}, {started_at:?}"
            );
            // Time limits go by another clock.
            rig.ask(port, RequestBody::OpenSession(ReaderId(0)))
                .unwrap();
            let slow = rig.send(port, RequestBody::OpenSession(ReaderId(0)));
            rig.wait(DEFAULT_TIMEOUT - Duration::from_millis(1));
            assert_eq!(rig.take(port, slow), None);
            rig.wait(Duration::from_millis(1));
            assert!(rig.take(port, slow).expect("an answer").is_err());
            rig.input(Input::Revoke(GrantId(1)));
            assert!(rig.readers(port).is_empty());
        }
    }
}
