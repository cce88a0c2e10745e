/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! The keys' part of the broker, and the rest of it.

use super::*;
use crate::keys::{Effect, Lent};

impl Broker {
    /// Has the keys' part deal with something, and does what it says.
    pub(super) fn with_keys(&mut self, now: Instant, act: impl FnOnce(&mut Keys)) {
        let mut lent = Lent {
            grants: std::mem::take(&mut self.grants),
            next_worker: self.next_worker,
            next_prompt: self.next_prompt,
        };
        let time = self.time(now);
        let effects = self.keys.turn(&mut lent, now, time, act);
        self.grants = lent.grants;
        self.next_worker = lent.next_worker;
        self.next_prompt = lent.next_prompt;
        for effect in effects {
            match effect {
                Effect::Reply(ticket, result) => self.reply(ticket, result.map(ReplyBody::Keys)),
                Effect::Token(port, info) => {
                    let message = PortMessage::Token(info);
                    self.outputs.push(Output::ToPort(port, message));
                }
                Effect::StartWorker(worker, _, kind) => {
                    self.outputs.push(Output::StartWorker(worker, kind));
                }
                Effect::KillWorker(worker, why) => {
                    log::warn!("worker {}: {why}", worker.0);
                    self.unasked.remove(&worker);
                    self.outputs.push(Output::KillWorker(worker));
                }
                Effect::ReleaseWorker(worker) => {
                    self.unasked.remove(&worker);
                    self.outputs.push(Output::ReleaseWorker(worker));
                }
                Effect::ToWorker(worker, request) => {
                    self.outputs.push(Output::ToKeyWorker(worker, request));
                }
                Effect::ToCards(request) => self.cards_request(request, now),
                Effect::CheckActivation(prompt, webview) => {
                    self.outputs.push(Output::CheckActivation(prompt, webview));
                }
                Effect::Prompt(request) => self.outputs.push(Output::Prompt(request)),
                Effect::WithdrawPrompt(prompt) => {
                    self.outputs.push(Output::WithdrawPrompt(prompt));
                }
                Effect::Store(write) => self.outputs.push(Output::Store(write)),
                Effect::Note {
                    origin,
                    token,
                    decision,
                } => self.note(&origin, &token, None, decision, now),
            }
        }
    }

    /// What [`ProviderId::Cards`] says.
    pub(super) fn cards_message(&mut self, message: KeyMessage, now: Instant) {
        self.with_keys(now, |keys| {
            if !keys.message(ProviderId::Cards, message) {
                log::error!("cards: an answer to nothing");
            }
        });
    }
}
