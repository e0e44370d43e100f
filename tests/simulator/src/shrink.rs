//! Makes a failing story short enough for a person to read.

use std::collections::BTreeSet;

use crate::{
    story::{Act, Story},
    world::{Outcome, play},
};

/// A story that fails in the same way and is as short as leaving out makes it: steps first, then what goes wrong in them, then
/// single uses. It is played `most_plays` times at most for that.
#[must_use]
pub fn shrink(story: &Story, violation: &str, most_plays: usize) -> (Story, Outcome) {
    let mut plays = 0;
    let kind = violation.split(':').next().unwrap_or_default().to_owned();
    let mut best = story.clone();
    let mut try_it = |candidate: Story, best: &mut Story| {
        plays += 1;
        let fails = plays <= most_plays && play(&candidate, false).violation.is_some_and(|now| now.starts_with(&kind));
        if fails {
            *best = candidate;
        }
        fails
    };
    let mut size = best.steps.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        while from < best.steps.len() {
            let ids: BTreeSet<usize> = best.steps.iter().skip(from).take(size).map(|step| step.id).collect();
            if !try_it(best.without(&ids), &mut best) {
                from += size;
            }
        }
        size /= 2;
    }
    for place in 0..best.steps.len() {
        if best.steps[place].weather.permille > 0 {
            let mut calm = best.clone();
            calm.steps[place].weather.permille = 0;
            try_it(calm, &mut best);
        }
    }
    let struck = play(&best, false).struck;
    for place in 0..best.steps.len() {
        for call in struck.get(&best.steps[place].id).into_iter().flatten() {
            let mut calmer = best.clone();
            calmer.steps[place].weather.muted.insert(*call);
            try_it(calmer, &mut best);
        }
    }
    for place in 0..best.steps.len() {
        let Act::Send(user, messages) = best.steps[place].act.clone() else { continue };
        let mut messages = messages;
        for message in (0..messages.len()).rev() {
            for used in (0..messages[message].len()).rev() {
                let mut fewer = messages.clone();
                fewer[message].remove(used);
                fewer.retain(|message| !message.is_empty());
                let mut shorter = best.clone();
                shorter.steps[place].act = Act::Send(user, fewer.clone());
                if try_it(shorter, &mut best) {
                    let is_gone = fewer.len() < messages.len();
                    messages = fewer;
                    if is_gone {
                        break;
                    }
                }
            }
        }
    }
    let outcome = play(&best, true);
    (best, outcome)
}
