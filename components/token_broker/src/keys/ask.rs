/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! Asking the user, and waiting.

use futures::channel::oneshot;
use futures::future::{Either, select};
use token_traits::PortId;
use token_traits::prompt::{PromptAnswer, PromptId, PromptRequest, Question};

use super::*;

/// How long a prompt may be left unanswered. Then it counts as refused.
const PROMPT_LIMIT: Duration = Duration::from_secs(5 * 60);
/// How long the main process may take to say whether the user has just done something.
const ACTIVATION_LIMIT: Duration = Duration::from_secs(5);
/// Most questions that wait for the user in one webview.
const MAX_PROMPTS: usize = 8;

/// Something that the main process is asked.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) port: PortId,
    webview: u64,
    /// The user sees it. Else it is the question whether the user has just done something.
    pub(super) is_shown: bool,
    pub(super) answer: oneshot::Sender<PromptAnswer>,
}

/// A prompt that is shown.
pub(super) struct Shown {
    pub(super) id: PromptId,
    answer: oneshot::Receiver<PromptAnswer>,
}

impl Shared {
    /// Waits until a time.
    pub(super) async fn sleep_until(&self, time: Instant) {
        let (sender, receiver) = oneshot::channel();
        self.with(|state| {
            let number = state.next();
            state.timers.insert((time, number), sender);
        });
        // It is sent, or the broker ends.
        let _ = receiver.await;
    }

    /// What `future` comes to, if it does within a time.
    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        future: impl Future<Output = T>,
    ) -> Option<T> {
        let until = self.with(|state| state.now) + limit;
        let future = std::pin::pin!(future);
        let timer = std::pin::pin!(self.sleep_until(until));
        match select(future, timer).await {
            Either::Left((value, _)) => Some(value),
            Either::Right(_) => None,
        }
    }

    /// Waits until a token has come or gone.
    pub(super) fn change(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.with(|state| state.changes.push(sender));
        receiver
    }

    fn pend(&self, caller: &Caller, is_shown: bool) -> Result<Shown, TokenError> {
        let (sender, answer) = oneshot::channel();
        self.with(|state| {
            // It may have gone, and what it asked for is carried through.
            if !state.ports.contains_key(&caller.port) {
                return Err(refused());
            }
            let waiting = state.prompts.values();
            if waiting.filter(|it| it.webview == caller.webview).count() >= MAX_PROMPTS {
                return Err(too_many_prompts());
            }
            let id = PromptId(state.lent.next_prompt);
            state.lent.next_prompt += 1;
            let pending = Pending {
                port: caller.port,
                webview: caller.webview,
                is_shown,
                answer: sender,
            };
            state.prompts.insert(id, pending);
            Ok(Shown { id, answer })
        })
    }

    /// Whether the user has just done something in the document's webview.
    pub(super) async fn is_active(&self, caller: &Caller) -> Result<bool, TokenError> {
        let asked = self.pend(caller, false)?;
        self.with(|state| {
            let effect = Effect::CheckActivation(asked.id, caller.webview);
            state.effects.push(effect);
        });
        let answer = self.within(ACTIVATION_LIMIT, asked.answer).await;
        Ok(matches!(answer, Some(Ok(PromptAnswer::Allowed { .. }))))
    }

    /// Shows a prompt.
    pub(super) fn show(
        &self,
        caller: &Caller,
        question: Question,
        replaces: Option<PromptId>,
    ) -> Result<Shown, TokenError> {
        let shown = self.pend(caller, true)?;
        self.with(|state| {
            if let Some(replaced) = replaces {
                state.prompts.remove(&replaced);
            }
            state.effects.push(Effect::Prompt(PromptRequest {
                id: shown.id,
                replaces,
                webview: caller.webview,
                origin: caller.party.origin.clone(),
                top_level_origin: caller.party.top_level_origin.clone(),
                question,
            }));
        });
        Ok(shown)
    }

    /// Waits for the answer. `None` if a token came or went meanwhile.
    pub(super) async fn answer_or_change(
        &self,
        shown: &mut Shown,
        change: oneshot::Receiver<()>,
    ) -> Option<PromptAnswer> {
        let answer = self.within(PROMPT_LIMIT, select(&mut shown.answer, change));
        match answer.await {
            None => Some(PromptAnswer::NotAsked),
            Some(Either::Left((answer, _))) => Some(answer.unwrap_or(PromptAnswer::NotAsked)),
            Some(Either::Right(_)) => None,
        }
    }

    /// Asks something whose answer depends on nothing else.
    pub(super) async fn ask(
        &self,
        caller: &Caller,
        question: Question,
    ) -> Result<PromptAnswer, TokenError> {
        let shown = self.show(caller, question, None)?;
        let answer = self.within(PROMPT_LIMIT, shown.answer).await;
        Ok(match answer {
            Some(Ok(answer)) => answer,
            None | Some(Err(_)) => PromptAnswer::NotAsked,
        })
    }
}
