/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Prompts: what the token broker asks the user, in which order, and which answers count. How they look is in
//! `chrome::prompt`.
//!
//! A page decides when a prompt appears, and under what the user is doing at that moment. So an answer counts only when
//! the prompt has stood still, in sight and focused, for [`INPUT_DELAY`], without a click or key that was too early, and
//! without the browser itself having stood still; a tab has one prompt at a time; and an origin
//! that was refused again and again is refused without being asked about.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use token_traits::Origin;
use token_traits::prompt::{
    AnswerCallback, Pin, PromptAnswer, PromptHost, PromptId, PromptRequest, Question,
};
use zeroize::Zeroizing;

use crate::chrome::prompt::choices;

/// How long a prompt must have been in sight, where it is, before it can be answered.
pub const INPUT_DELAY: Duration = Duration::from_millis(500);

/// For so long the browser may be busy while a prompt becomes ready.
const MAX_BUSY: Duration = Duration::from_millis(100);

/// Most prompts of one origin that one tab keeps, the one that is shown included.
const MAX_PER_ORIGIN: usize = 3;

/// Most prompts that all tabs keep.
const MAX_PROMPTS: usize = 32;

/// So many refusals in a row within [`REFUSAL_PERIOD`] are taken as the user's answer to the next prompts.
const MAX_REFUSALS: usize = 3;

/// How long a refusal counts.
const REFUSAL_PERIOD: Duration = Duration::from_secs(10 * 60);

/// A callback that is called even if everybody forgets it.
struct Reply(Option<AnswerCallback>);

impl Reply {
    fn send(mut self, answer: PromptAnswer) {
        if let Some(callback) = self.0.take() {
            callback(answer);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(callback) = self.0.take() {
            callback(PromptAnswer::Refused);
        }
    }
}

/// What has arrived from the broker for the main thread.
pub struct Message(Inner);

enum Inner {
    Show(PromptRequest, Reply),
    Withdraw(PromptId),
}

/// The [`PromptHost`] of this browser: it hands everything to the main thread.
struct PromptChannel {
    messages: Sender<Message>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl PromptChannel {
    fn send(&self, message: Inner) {
        // When the main thread is gone, the message is dropped, and with it the reply: refused.
        if self.messages.send(Message(message)).is_ok() {
            (self.wake)();
        }
    }
}

impl PromptHost for PromptChannel {
    fn show(&self, request: PromptRequest, answer: AnswerCallback) {
        self.send(Inner::Show(request, Reply(Some(answer))));
    }

    fn withdraw(&self, id: PromptId) {
        self.send(Inner::Withdraw(id));
    }
}

/// A way for prompts to the main thread, which `wake` makes look at it.
pub fn channel(wake: Box<dyn Fn() + Send + Sync>) -> (Arc<dyn PromptHost>, Receiver<Message>) {
    let (messages, receiver) = unbounded();
    (Arc::new(PromptChannel { messages, wake }), receiver)
}

/// Who answers.
#[derive(Clone, Debug, Default)]
pub enum Mode {
    /// The user does, in a window.
    #[default]
    Ask,
    /// There is nobody to ask: everything is refused, with a line on the standard error stream.
    Nobody,
    /// A WebDriver client said yes beforehand: the first reader that has an element in it, nothing remembered, and this
    /// PIN.
    Accept {
        /// The answer to questions for a PIN, which without it are refused.
        pin: Option<Zeroizing<String>>,
    },
    /// A WebDriver client said no beforehand.
    Reject,
}

struct Pending {
    request: PromptRequest,
    reply: Reply,
}

/// The prompt that the user sees.
#[derive(Clone, Copy)]
struct Shown {
    id: PromptId,
    /// Since when it has stood where it is.
    since: Instant,
}

/// All prompts that wait for an answer.
#[derive(Default)]
pub struct Prompts {
    mode: Mode,
    pending: VecDeque<Pending>,
    shown: Option<Shown>,
    /// When the latest prompts of an origin were refused by the user, the newest last. Allowing one clears it.
    refusals: HashMap<Origin, VecDeque<Instant>>,
}

impl Prompts {
    /// No prompts yet.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }

    /// Changes who answers, for prompts that come from now on.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// Takes what has arrived.
    pub fn receive(&mut self, message: Message, now: Instant) {
        match message.0 {
            Inner::Show(request, reply) => self.add(request, reply, now),
            Inner::Withdraw(id) => self.withdraw(id),
        }
    }

    fn add(&mut self, request: PromptRequest, reply: Reply, now: Instant) {
        let replaced = self
            .pending
            .iter()
            .position(|pending| request.replaces == Some(pending.request.id));
        // The reply of the one before says "refused".
        let replaced = replaced.and_then(|index| Some((index, self.pending.remove(index)?)));
        match &self.mode {
            Mode::Ask => {}
            Mode::Nobody => {
                eprintln!(
                    "servo-tokens: a page asks for a token; without a window nobody can allow it"
                );
                return reply.send(PromptAnswer::Refused);
            }
            Mode::Reject => return reply.send(PromptAnswer::Refused),
            Mode::Accept { pin } => return reply.send(accept(&request.question, pin.as_ref())),
        }
        if let Some((index, _)) = replaced {
            // The prompt that is shown is another one from now on, with a delay of its own.
            return self.pending.insert(index, Pending { request, reply });
        }
        let of_origin = self
            .pending
            .iter()
            .filter(|other| {
                other.request.webview == request.webview && other.request.origin == request.origin
            })
            .count();
        if of_origin >= MAX_PER_ORIGIN
            || self.pending.len() >= MAX_PROMPTS
            || self.is_tiresome(&request.origin, now)
        {
            return reply.send(PromptAnswer::Refused);
        }
        self.pending.push_back(Pending { request, reply });
    }

    fn is_tiresome(&mut self, origin: &Origin, now: Instant) -> bool {
        let Some(refusals) = self.refusals.get_mut(origin) else {
            return false;
        };
        refusals.retain(|refusal| now.saturating_duration_since(*refusal) < REFUSAL_PERIOD);
        if refusals.is_empty() {
            self.refusals.remove(origin);
            return false;
        }
        refusals.len() >= MAX_REFUSALS
    }

    fn withdraw(&mut self, id: PromptId) {
        self.drop_where(|request| request.id == id);
    }

    /// The tab's document was left, or the tab was closed: nobody needs the answers.
    pub fn tab_left(&mut self, webview: u64) {
        self.drop_where(|request| request.webview == webview);
    }

    fn drop_where(&mut self, is_over: impl Fn(&PromptRequest) -> bool) {
        if self
            .shown
            .is_some_and(|shown| self.request(shown.id).is_none_or(&is_over))
        {
            self.shown = None;
        }
        // The replies say "refused" when they are dropped.
        self.pending.retain(|pending| !is_over(&pending.request));
    }

    fn request(&self, id: PromptId) -> Option<&PromptRequest> {
        self.pending
            .iter()
            .map(|pending| &pending.request)
            .find(|request| request.id == id)
    }

    /// Whether the tab has a prompt, shown or not.
    pub fn is_waiting(&self, webview: u64) -> bool {
        self.pending
            .iter()
            .any(|pending| pending.request.webview == webview)
    }

    /// Says which tab is in sight in a focused window, if any, and gets the prompt that is to be shown in it.
    pub fn look(&mut self, webview: Option<u64>, now: Instant) -> Option<&PromptRequest> {
        let first = webview.and_then(|webview| {
            self.pending
                .iter()
                .map(|pending| &pending.request)
                .find(|request| request.webview == webview)
        });
        let Some(first) = first else {
            self.shown = None;
            return None;
        };
        if self.shown.is_none_or(|shown| shown.id != first.id) {
            self.shown = Some(Shown {
                id: first.id,
                since: now,
            });
        }
        Some(first)
    }

    /// The prompt has moved, something was over it, or the user has clicked or pressed a key too early, and may be about to do
    /// it again: the delay starts anew.
    pub fn disturbed(&mut self, now: Instant) {
        if let Some(shown) = &mut self.shown {
            shown.since = now;
        }
    }

    /// The browser was busy for that time, with drawing perhaps, and has taken no input. What the user did meanwhile comes
    /// now, so if it was long, the delay starts anew.
    pub fn was_busy(&mut self, since: Instant, now: Instant) {
        if now.saturating_duration_since(since) >= MAX_BUSY && !self.is_ready(since) {
            self.disturbed(now);
        }
    }

    /// When the prompt that is shown can be answered.
    pub fn ready_at(&self) -> Option<Instant> {
        Some(self.shown?.since + INPUT_DELAY)
    }

    /// Whether the prompt that is shown can be answered.
    pub fn is_ready(&self, now: Instant) -> bool {
        self.ready_at().is_some_and(|ready_at| now >= ready_at)
    }

    /// The user's answer to the prompt that is shown. Says whether it counts.
    pub fn answer(&mut self, id: PromptId, answer: PromptAnswer, now: Instant) -> bool {
        if self.shown.is_none_or(|shown| shown.id != id) || !self.is_ready(now) {
            return false;
        }
        let Some(index) = self
            .pending
            .iter()
            .position(|pending| pending.request.id == id)
        else {
            return false;
        };
        if !fits(&self.pending[index].request.question, &answer) {
            return false;
        }
        let Some(Pending { request, reply }) = self.pending.remove(index) else {
            return false;
        };
        self.shown = None;
        if answer == PromptAnswer::Refused {
            let refusals = self.refusals.entry(request.origin).or_default();
            refusals.push_back(now);
            if refusals.len() > MAX_REFUSALS {
                refusals.pop_front();
            }
        } else {
            self.refusals.remove(&request.origin);
        }
        reply.send(answer);
        true
    }
}

/// Whether an answer is one to this question.
fn fits(question: &Question, answer: &PromptAnswer) -> bool {
    match (question, answer) {
        (_, PromptAnswer::Refused) => true,
        (question, PromptAnswer::Chosen { index, .. }) => choices(question)
            .is_some_and(|count| usize::try_from(*index).is_ok_and(|index| index < count)),
        (Question::UseApplet { .. } | Question::ShareKey { .. }, PromptAnswer::Allowed { .. }) => {
            true
        }
        (
            Question::EnterPin {
                min_length,
                max_length,
                ..
            },
            PromptAnswer::Pin(pin),
        ) => (usize::from(*min_length)..=usize::from(*max_length))
            .contains(&pin.as_str().chars().count()),
        _ => false,
    }
}

fn accept(question: &Question, pin: Option<&Zeroizing<String>>) -> PromptAnswer {
    let chosen = |index: Option<usize>| {
        let index = u32::try_from(index?).ok()?;
        Some(PromptAnswer::Chosen {
            index,
            remember: false,
        })
    };
    let answer = match question {
        Question::ChooseReader { readers } => {
            chosen(readers.iter().position(|reader| reader.present))
        }
        Question::ChooseToken { .. } | Question::ChooseKey { .. } => chosen(Some(0)),
        Question::UseApplet { .. } | Question::ShareKey { .. } => {
            Some(PromptAnswer::Allowed { remember: false })
        }
        Question::EnterPin { .. } => pin.map(|pin| PromptAnswer::Pin(Pin::new(pin.clone()))),
    };
    answer
        .filter(|answer| fits(question, answer))
        .unwrap_or(PromptAnswer::Refused)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use token_traits::port::ElementType;
    use token_traits::prompt::PromptReader;

    use super::*;

    const TAB: u64 = 1;

    #[derive(Clone, Default)]
    struct Answers(Arc<Mutex<Vec<(u64, PromptAnswer)>>>);

    impl Answers {
        fn reply(&self, id: u64) -> Reply {
            let answers = self.0.clone();
            Reply(Some(Box::new(move |answer| {
                answers.lock().unwrap().push((id, answer))
            })))
        }

        fn take(&self) -> Vec<(u64, PromptAnswer)> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    fn reader(present: bool) -> PromptReader {
        PromptReader {
            name: "Reader".into(),
            element_type: ElementType::SmartCard,
            present,
        }
    }

    fn request(id: u64, webview: u64, origin: &str) -> PromptRequest {
        let origin = Origin::new(origin).unwrap();
        PromptRequest {
            id: PromptId(id),
            replaces: None,
            webview,
            origin: origin.clone(),
            top_level_origin: origin,
            question: Question::UseApplet {
                reader: "Reader".into(),
                applet: Some(vec![1, 2, 3]),
            },
        }
    }

    const SITE: &str = "https://a.example";
    const YES: PromptAnswer = PromptAnswer::Allowed { remember: false };
    const NO: PromptAnswer = PromptAnswer::Refused;

    fn shown(prompts: &mut Prompts, webview: Option<u64>, now: Instant) -> Option<u64> {
        prompts.look(webview, now).map(|request| request.id.0)
    }

    #[test]
    fn nothing_counts_within_the_delay() {
        let (mut prompts, answers, start) =
            (Prompts::default(), Answers::default(), Instant::now());
        prompts.add(request(1, TAB, SITE), answers.reply(1), start);
        let id = PromptId(1);
        assert!(
            !prompts.answer(id, YES, start + INPUT_DELAY),
            "it has not been seen at all"
        );
        assert_eq!(shown(&mut prompts, Some(TAB), start), Some(1));
        let almost = start + INPUT_DELAY - Duration::from_millis(1);
        assert!(!prompts.answer(id, YES, almost));
        assert!(!prompts.answer(id, NO, almost));
        prompts.disturbed(almost);
        assert!(
            !prompts.answer(id, YES, start + INPUT_DELAY),
            "it has moved"
        );
        assert!(answers.take().is_empty());
        assert!(prompts.answer(id, YES, almost + INPUT_DELAY));
        assert_eq!(answers.take(), [(1, YES)]);
        assert!(
            !prompts.answer(id, YES, almost + INPUT_DELAY),
            "it was answered"
        );
    }

    #[test]
    fn what_comes_late_does_not_count() {
        let (mut prompts, answers, start) =
            (Prompts::default(), Answers::default(), Instant::now());
        prompts.add(request(1, TAB, SITE), answers.reply(1), start);
        shown(&mut prompts, Some(TAB), start);
        let id = PromptId(1);
        // It takes long until it is drawn. A click from that time is taken now.
        let drawn = start + INPUT_DELAY * 2;
        prompts.was_busy(start, drawn);
        assert!(!prompts.answer(id, YES, drawn));
        // A short while changes nothing, nor does a long one afterwards.
        let later = drawn + INPUT_DELAY;
        prompts.was_busy(later - Duration::from_millis(50), later);
        assert!(prompts.is_ready(later));
        prompts.was_busy(later, later + INPUT_DELAY);
        assert!(prompts.answer(id, YES, later + INPUT_DELAY));
    }

    #[test]
    fn out_of_sight_and_back_starts_the_delay_anew() {
        let (mut prompts, answers, start) =
            (Prompts::default(), Answers::default(), Instant::now());
        prompts.add(request(1, TAB, SITE), answers.reply(1), start);
        assert_eq!(shown(&mut prompts, Some(TAB), start), Some(1));
        let later = start + INPUT_DELAY * 2;
        // Another tab is opened over it, or the window loses the focus.
        assert_eq!(shown(&mut prompts, Some(2), later), None);
        assert!(!prompts.answer(PromptId(1), YES, later));
        assert_eq!(shown(&mut prompts, None, later), None);
        assert_eq!(shown(&mut prompts, Some(TAB), later), Some(1));
        assert!(!prompts.answer(PromptId(1), YES, later));
        assert!(prompts.answer(PromptId(1), YES, later + INPUT_DELAY));
    }

    #[test]
    fn a_question_that_changes_keeps_its_place_and_starts_the_delay_anew() {
        let (mut prompts, answers, start) =
            (Prompts::default(), Answers::default(), Instant::now());
        let choose = |id, replaces: Option<u64>, readers| PromptRequest {
            replaces: replaces.map(PromptId),
            question: Question::ChooseReader { readers },
            ..request(id, TAB, SITE)
        };
        prompts.add(choose(1, None, Vec::new()), answers.reply(1), start);
        prompts.add(request(2, TAB, SITE), answers.reply(2), start);
        assert_eq!(shown(&mut prompts, Some(TAB), start), Some(1));
        let later = start + INPUT_DELAY;
        prompts.add(
            choose(3, Some(1), vec![reader(true)]),
            answers.reply(3),
            later,
        );
        assert_eq!(answers.take(), [(1, NO)], "nobody waits for this any more");
        let yes = PromptAnswer::Chosen {
            index: 0,
            remember: false,
        };
        assert!(!prompts.answer(PromptId(1), yes.clone(), later));
        assert!(!prompts.answer(PromptId(3), yes.clone(), later));
        assert_eq!(shown(&mut prompts, Some(TAB), later), Some(3));
        assert!(!prompts.answer(PromptId(3), yes.clone(), later));
        assert!(prompts.answer(PromptId(3), yes.clone(), later + INPUT_DELAY));
        assert_eq!(answers.take(), [(3, yes)]);
        // One that is not shown yet changes as well.
        prompts.add(choose(4, Some(2), Vec::new()), answers.reply(4), later);
        assert_eq!(answers.take(), [(2, NO)]);
        assert_eq!(shown(&mut prompts, Some(TAB), later), Some(4));
        // Whoever answers meanwhile answers all of it.
        prompts.set_mode(Mode::Reject);
        prompts.add(choose(5, Some(4), Vec::new()), answers.reply(5), later);
        assert_eq!(answers.take(), [(5, NO), (4, NO)]);
        assert_eq!(shown(&mut prompts, Some(TAB), later), None);
    }

    #[test]
    fn a_tab_has_one_prompt_at_a_time() {
        let (mut prompts, answers, now) = (Prompts::default(), Answers::default(), Instant::now());
        for id in 1..=2 {
            prompts.add(request(id, TAB, SITE), answers.reply(id), now);
        }
        prompts.add(request(3, 2, SITE), answers.reply(3), now);
        assert_eq!(shown(&mut prompts, Some(TAB), now), Some(1));
        let later = now + INPUT_DELAY;
        assert!(!prompts.answer(PromptId(2), YES, later));
        assert!(!prompts.answer(PromptId(3), YES, later));
        assert!(prompts.answer(PromptId(1), YES, later));
        assert_eq!(shown(&mut prompts, Some(TAB), later), Some(2));
        assert!(
            !prompts.answer(PromptId(2), YES, later),
            "the next prompt has its own delay"
        );
        assert_eq!(shown(&mut prompts, Some(2), later), Some(3));
    }

    #[test]
    fn queues_are_bounded() {
        let (mut prompts, answers, now) = (Prompts::default(), Answers::default(), Instant::now());
        for id in 0..5 {
            prompts.add(request(id, TAB, SITE), answers.reply(id), now);
        }
        assert_eq!(answers.take(), [(3, NO), (4, NO)]);
        for id in 10..100 {
            prompts.add(request(id, id, SITE), answers.reply(id), now);
        }
        assert_eq!(prompts.pending.len(), MAX_PROMPTS);
        assert_eq!(answers.take().len(), 90 - (MAX_PROMPTS - 3));
    }

    fn refuse(prompts: &mut Prompts, id: u64, origin: &str, now: Instant) {
        prompts.add(request(id, TAB, origin), Answers::default().reply(id), now);
        prompts.look(Some(TAB), now);
        assert!(prompts.answer(PromptId(id), NO, now + INPUT_DELAY));
    }

    #[test]
    fn who_is_refused_again_and_again_is_not_asked_about() {
        let (mut prompts, answers, start) =
            (Prompts::default(), Answers::default(), Instant::now());
        for id in 0..3 {
            refuse(&mut prompts, id, SITE, start);
        }
        prompts.add(
            request(10, TAB, SITE),
            answers.reply(10),
            start + INPUT_DELAY,
        );
        assert_eq!(answers.take(), [(10, NO)]);
        prompts.add(
            request(11, TAB, "https://b.example"),
            answers.reply(11),
            start,
        );
        assert!(answers.take().is_empty(), "another origin is asked about");
        let later = start + INPUT_DELAY + REFUSAL_PERIOD;
        prompts.tab_left(TAB);
        prompts.add(request(12, TAB, SITE), Answers::default().reply(12), later);
        assert_eq!(shown(&mut prompts, Some(TAB), later), Some(12));
    }

    #[test]
    fn allowing_ends_a_row_of_refusals() {
        let (mut prompts, now) = (Prompts::default(), Instant::now());
        refuse(&mut prompts, 0, SITE, now);
        refuse(&mut prompts, 1, SITE, now);
        prompts.add(request(2, TAB, SITE), Answers::default().reply(2), now);
        prompts.look(Some(TAB), now);
        assert!(prompts.answer(PromptId(2), YES, now + INPUT_DELAY));
        refuse(&mut prompts, 3, SITE, now);
        refuse(&mut prompts, 4, SITE, now);
        prompts.add(request(5, TAB, SITE), Answers::default().reply(5), now);
        assert_eq!(shown(&mut prompts, Some(TAB), now), Some(5));
    }

    #[test]
    fn whoever_leaves_is_refused() {
        let (mut prompts, answers, now) = (Prompts::default(), Answers::default(), Instant::now());
        prompts.add(request(1, TAB, SITE), answers.reply(1), now);
        prompts.add(request(2, 2, SITE), answers.reply(2), now);
        prompts.look(Some(TAB), now);
        prompts.tab_left(TAB);
        assert_eq!(answers.take(), [(1, NO)]);
        assert!(!prompts.answer(PromptId(1), YES, now + INPUT_DELAY));
        prompts.withdraw(PromptId(2));
        assert_eq!(answers.take(), [(2, NO)]);
        // Leaving is not the user's refusal.
        assert!(prompts.refusals.is_empty());
        prompts.add(request(3, TAB, SITE), answers.reply(3), now);
        drop(prompts);
        assert_eq!(answers.take(), [(3, NO)]);
    }

    #[test]
    fn answers_fit_the_question() {
        let choose = Question::ChooseReader {
            readers: vec![reader(false), reader(true)],
        };
        let index = |index| PromptAnswer::Chosen {
            index,
            remember: false,
        };
        assert!(fits(&choose, &index(1)));
        assert!(!fits(&choose, &index(2)));
        assert!(!fits(&choose, &YES));
        let enter = Question::EnterPin {
            token: "Token".into(),
            was_wrong: false,
            tries_left: None,
            min_length: 4,
            max_length: 6,
        };
        let pin = |pin: &str| PromptAnswer::Pin(Pin::new(Zeroizing::new(pin.to_owned())));
        assert!(fits(&enter, &pin("1234")) && fits(&enter, &pin("ääääää")));
        assert!(!fits(&enter, &pin("123")) && !fits(&enter, &pin("1234567")));
        assert!(!fits(&enter, &YES) && fits(&enter, &NO));
    }

    #[test]
    fn automation() {
        let (answers, now) = (Answers::default(), Instant::now());
        let choose = |id, readers| PromptRequest {
            question: Question::ChooseReader { readers },
            ..request(id, TAB, SITE)
        };
        let mut prompts = Prompts::new(Mode::Accept { pin: None });
        prompts.add(request(1, TAB, SITE), answers.reply(1), now);
        prompts.add(
            choose(2, vec![reader(false), reader(true)]),
            answers.reply(2),
            now,
        );
        prompts.add(choose(3, vec![reader(false)]), answers.reply(3), now);
        let enter = |id| PromptRequest {
            question: Question::EnterPin {
                token: "Token".into(),
                was_wrong: false,
                tries_left: Some(3),
                min_length: 4,
                max_length: 8,
            },
            ..request(id, TAB, SITE)
        };
        prompts.add(enter(4), answers.reply(4), now);
        let pin = Zeroizing::new("123456".to_owned());
        prompts.set_mode(Mode::Accept {
            pin: Some(pin.clone()),
        });
        prompts.add(enter(5), answers.reply(5), now);
        let first = PromptAnswer::Chosen {
            index: 1,
            remember: false,
        };
        assert_eq!(
            answers.take(),
            [
                (1, YES),
                (2, first),
                (3, NO),
                (4, NO),
                (5, PromptAnswer::Pin(Pin::new(pin)))
            ]
        );
        for mode in [Mode::Reject, Mode::Nobody] {
            let mut prompts = Prompts::new(mode);
            for id in 0..4 {
                prompts.add(request(id, TAB, SITE), answers.reply(id), now);
            }
            assert_eq!(answers.take(), [(0, NO), (1, NO), (2, NO), (3, NO)]);
            // A client's refusals are not the user's.
            prompts.set_mode(Mode::Accept { pin: None });
            prompts.add(request(9, TAB, SITE), answers.reply(9), now);
            assert_eq!(answers.take(), [(9, YES)]);
        }
    }

    #[test]
    fn the_channel_answers_even_without_a_main_thread() {
        let answers = Answers::default();
        let (host, messages) = channel(Box::new(|| {}));
        let callback = answers.clone();
        host.show(
            request(1, TAB, SITE),
            Box::new(move |answer| callback.0.lock().unwrap().push((1, answer))),
        );
        let mut prompts = Prompts::default();
        for message in messages.try_iter() {
            prompts.receive(message, Instant::now());
        }
        assert_eq!(prompts.pending.len(), 1);
        drop(messages);
        let callback = answers.clone();
        host.show(
            request(2, TAB, SITE),
            Box::new(move |answer| callback.0.lock().unwrap().push((2, answer))),
        );
        assert_eq!(answers.take(), [(2, NO)]);
    }
}
