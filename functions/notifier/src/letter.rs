//! The letters: the templates under `templates/`, compiled in. `templates/README.md` says how to change them.

use askama::Template;
use tokentill::domain::email::{Letter, LetterKind};

/// How the text template's first line begins; the subject follows.
const SUBJECT: &str = "Subject: ";

/// A letter as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The subject, one line.
    pub subject: String,
    /// The body as HTML.
    pub html: String,
    /// The same as plain text.
    pub text: String,
}

macro_rules! templates {
    ($($module:ident($html:literal, $text:literal);)*) => {$(
        mod $module {
            use super::{Letter, Template};

            #[derive(Template)]
            #[template(path = $html)]
            pub(super) struct Html<'a> {
                pub(super) letter: &'a Letter,
            }

            #[derive(Template)]
            #[template(path = $text)]
            pub(super) struct Text<'a> {
                pub(super) letter: &'a Letter,
            }
        }
    )*};
}

templates! {
    payment_failed("payment_failed.html", "payment_failed.txt");
    payment_reminder("payment_reminder.html", "payment_reminder.txt");
    access_ended("access_ended.html", "access_ended.txt");
    access_restored("access_restored.html", "access_restored.txt");
    subscription_ending("subscription_ending.html", "subscription_ending.txt");
    trial_ending("trial_ending.html", "trial_ending.txt");
    plan_changed("plan_changed.html", "plan_changed.txt");
}

/// Puts what a letter says into its templates.
///
/// # Errors
/// [`askama::Error`] if a template cannot be filled in, or its first line is no subject.
pub fn render(letter: &Letter) -> Result<Page, askama::Error> {
    let (html, text) = match letter.kind {
        LetterKind::PaymentFailed => (payment_failed::Html { letter }.render()?, payment_failed::Text { letter }.render()?),
        LetterKind::PaymentReminder => (payment_reminder::Html { letter }.render()?, payment_reminder::Text { letter }.render()?),
        LetterKind::AccessEnded => (access_ended::Html { letter }.render()?, access_ended::Text { letter }.render()?),
        LetterKind::AccessRestored => (access_restored::Html { letter }.render()?, access_restored::Text { letter }.render()?),
        LetterKind::SubscriptionEnding => {
            (subscription_ending::Html { letter }.render()?, subscription_ending::Text { letter }.render()?)
        }
        LetterKind::TrialEnding => (trial_ending::Html { letter }.render()?, trial_ending::Text { letter }.render()?),
        LetterKind::PlanChanged => (plan_changed::Html { letter }.render()?, plan_changed::Text { letter }.render()?),
    };
    let (first, body) = text.split_once('\n').unwrap_or((&text, ""));
    let subject = first.strip_prefix(SUBJECT).ok_or_else(|| askama::Error::custom("its first line is no subject"))?;
    Ok(Page { subject: subject.trim().to_owned(), html, text: format!("{}\n", body.trim()) })
}
