/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Consent and what is remembered of it, with the real processes and a user in software.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use common::*;
use token_traits::TokenBroker as _;
use token_traits::prompt::{
    AnswerCallback, Overview, PromptAnswer, PromptHost, PromptId, PromptRequest,
};

/// Answers what it was told to, and counts.
struct User {
    answer: PromptAnswer,
    asked: AtomicUsize,
    /// Callbacks that are not called, for a user who does not answer.
    waiting: Mutex<Vec<AnswerCallback>>,
    withdrawn: AtomicUsize,
}

impl User {
    fn who_says(answer: PromptAnswer) -> Arc<Self> {
        Arc::new(Self {
            answer,
            asked: AtomicUsize::new(0),
            waiting: Mutex::default(),
            withdrawn: AtomicUsize::new(0),
        })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl PromptHost for User {
    fn show(&self, _request: PromptRequest, answer: AnswerCallback) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.answer == PromptAnswer::NotAsked {
            self.waiting.lock().unwrap().push(answer);
        } else {
            answer(self.answer.clone());
        }
    }

    fn withdraw(&self, _id: PromptId) {
        self.withdrawn.fetch_add(1, Ordering::SeqCst);
    }
}

const REMEMBER: PromptAnswer = PromptAnswer::Chosen {
    index: 0,
    remember: true,
};

/// What the page of tokens shows. Where the broker has just died, the page asks again.
fn overview(browser: &Browser) -> Overview {
    wait_for("an overview", || {
        let (sender, receiver) = mpsc::channel();
        browser.client.overview(Box::new(move |overview| {
            let _ = sender.send(overview);
        }));
        receiver.recv_timeout(PATIENCE).ok()
    })
}

#[test]
fn the_user_is_asked_once_after_each_thing_they_do() {
    let user = User::who_says(PromptAnswer::Refused);
    let browser = Browser::with_user(false, None, user.clone());
    let mut page = browser.open_page();
    assert_eq!(page.readers(), []);
    assert_eq!(user.asked(), 0);
    browser.client.user_input(2);
    assert_eq!(page.readers(), []);
    assert_eq!(user.asked(), 0, "it was another tab");
    browser.client.user_input(1);
    assert_eq!(page.readers(), []);
    assert_eq!(page.readers(), []);
    assert_eq!(user.asked(), 1);
}

#[test]
fn what_a_page_was_told_of_outlives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let store = Some(folder.path().to_owned());
    for round in 0..20 {
        // A browser each time, because a broker that dies again and again is started later and later.
        let user = User::who_says(REMEMBER);
        let browser = Browser::with_user(false, store.clone(), user.clone());
        let origin = format!("https://shop{round}.example");
        browser.client.user_input(1);
        let mut page = browser.try_open_page(&origin).expect("a port");
        assert_eq!(page.readers().len(), 1);
        kill(browser.process("broker"));
        let mut page = browser.try_open_page(&origin).expect("a port");
        assert_eq!(page.readers().len(), 1);
        assert_eq!(user.asked(), 1, "the user is not asked again");
    }
    let browser = Browser::with_user(false, store.clone(), Arc::new(Nobody));
    let grants = overview(&browser).grants;
    assert_eq!(grants.len(), 20);
    // What the user saw revoked stays revoked.
    browser.client.revoke(grants[0].id.unwrap());
    assert_eq!(overview(&browser).grants.len(), 19);
    kill(browser.process("broker"));
    assert_eq!(overview(&browser).grants.len(), 19);
    drop(browser);

    // With the next browser too.
    let browser = Browser::with_user(false, store, User::who_says(PromptAnswer::Refused));
    assert_eq!(overview(&browser).grants.len(), 19);
    let audit = overview(&browser).audit;
    assert!(
        audit
            .iter()
            .any(|entry| entry.decision == "revoked by the user")
    );
}

#[test]
fn what_is_not_remembered_does_not_outlive_the_broker() {
    let folder = tempfile::tempdir().unwrap();
    let user = User::who_says(PromptAnswer::Chosen {
        index: 0,
        remember: false,
    });
    let browser = Browser::with_user(false, Some(folder.path().to_owned()), user.clone());
    browser.client.user_input(1);
    let mut page = browser.open_page();
    assert_eq!(page.readers().len(), 1);
    kill(browser.process("broker"));
    let mut page = browser.open_page();
    // An answer that allows something lets the next prompt follow it: the user is still at it.
    browser.client.document_left(1);
    assert_eq!(page.readers(), []);
    assert_eq!(user.asked(), 1);
}

#[test]
fn a_prompt_goes_with_its_document_and_with_the_broker() {
    let user = User::who_says(PromptAnswer::NotAsked);
    let browser = Browser::with_user(false, None, user.clone());
    let withdrawn = |count| {
        wait_for("a prompt to be withdrawn", || {
            (user.withdrawn.load(Ordering::SeqCst) >= count).then_some(())
        });
    };
    let ask = |page: &mut Page, count| {
        browser.client.user_input(1);
        page.send(token_traits::port::RequestBody::GetReaders);
        wait_for("a prompt", || (user.asked() == count).then_some(()));
    };
    let mut page = browser.open_page();
    ask(&mut page, 1);
    browser.client.close_port(page.id);
    withdrawn(1);

    let mut page = browser.open_page();
    ask(&mut page, 2);
    kill(browser.process("broker"));
    withdrawn(2);
    // A late answer reaches no other broker.
    let mut page = browser.open_page();
    ask(&mut page, 3);
    let answers = std::mem::take(&mut *user.waiting.lock().unwrap());
    let mut answers = answers.into_iter();
    answers.next().unwrap()(REMEMBER);
    answers.next().unwrap()(REMEMBER);
    assert_eq!(overview(&browser).grants, []);
    answers.next().unwrap()(REMEMBER);
    wait_for("the grant", || {
        (overview(&browser).grants.len() == 1).then_some(())
    });
}

#[test]
fn a_store_that_cannot_be_used_costs_the_memory_only() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.sqlite");
    let broken = |path: &Path| std::fs::write(path, "no database".repeat(500)).unwrap();
    for spoil in [broken, |path: &Path| {
        let _ = std::fs::remove_file(path);
        std::fs::create_dir(path).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o000)).unwrap();
    }] {
        spoil(&file);
        let user = User::who_says(REMEMBER);
        let browser = Browser::with_user(false, Some(folder.path().to_owned()), user.clone());
        browser.client.user_input(1);
        let mut page = browser.open_page();
        assert_eq!(page.readers().len(), 1);
        let problem = overview(&browser).problem.expect("the user is told");
        assert!(problem.contains("tokens.sqlite"), "{problem}");
    }
}

#[test]
fn a_store_behind_a_link_is_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let (place, link) = (folder.path().join("place"), folder.path().join("link"));
    std::fs::create_dir(&place).unwrap();
    std::os::unix::fs::symlink(&place, &link).unwrap();
    for (path, asked) in [(&link, 1), (&place, 0)] {
        let user = User::who_says(REMEMBER);
        let browser = Browser::with_user(false, Some(path.clone()), user.clone());
        browser.client.user_input(1);
        assert_eq!(browser.open_page().readers().len(), 1);
        assert_eq!(user.asked(), asked, "{}", path.display());
        assert_eq!(overview(&browser).problem, None);
    }
}
