//! Every e-mail as it is sent. `UPDATE_EXPECT=1` takes a changed template over into `letters/`; look at them in a browser then.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "this whole file is a test")]

use expect_test::expect_file;
use notifier::letter::{Page, render};
use tokentill::domain::{
    email::{Letter, LetterKind},
    selling::Link,
};

/// A letter of which everything is known.
fn full(kind: LetterKind) -> Letter {
    let asks = kind.asks_for_payment();
    Letter {
        kind,
        product: "Acme AI".to_owned(),
        support: Some("help@example.com".to_owned()),
        name: Some("Ada".to_owned()),
        plan: Some("Pro".to_owned()),
        previous_plan: (kind == LetterKind::PlanChanged).then(|| "Starter".to_owned()),
        until: (!matches!(kind, LetterKind::AccessEnded | LetterKind::AccessRestored | LetterKind::PlanChanged))
            .then(|| "29 November 2026 at 12:00 UTC".to_owned()),
        has_access: kind != LetterKind::AccessEnded,
        amount: asks.then(|| "49.00 EUR".to_owned()),
        link: asks.then(|| Link::new("https://invoice.stripe.com/i/in_Sample".to_owned())),
    }
}

/// A letter of which as little as possible is known.
fn bare(kind: LetterKind) -> Letter {
    Letter {
        support: None,
        name: None,
        plan: None,
        previous_plan: None,
        until: None,
        has_access: false,
        amount: None,
        link: None,
        ..full(kind)
    }
}

fn whole(page: &Page) -> String {
    format!("Subject: {}\n\n{}", page.subject, page.text)
}

macro_rules! letters {
    ($($name:ident: $kind:ident;)*) => {$(
        #[test]
        fn $name() {
            let page = render(&full(LetterKind::$kind)).unwrap();
            expect_file![concat!("letters/", stringify!($name), ".html")].assert_eq(&page.html);
            expect_file![concat!("letters/", stringify!($name), ".txt")].assert_eq(&whole(&page));
            let page = render(&bare(LetterKind::$kind)).unwrap();
            expect_file![concat!("letters/", stringify!($name), "-bare.txt")].assert_eq(&whole(&page));
        }
    )*};
}

letters! {
    payment_failed: PaymentFailed;
    payment_reminder: PaymentReminder;
    access_ended: AccessEnded;
    access_restored: AccessRestored;
    subscription_ending: SubscriptionEnding;
    trial_ending: TrialEnding;
    plan_changed: PlanChanged;
}

#[test]
fn in_grace_that_is_worth_nothing_no_access_is_promised() {
    for kind in [LetterKind::PaymentFailed, LetterKind::PaymentReminder] {
        let page = render(&Letter { has_access: false, ..full(kind) }).unwrap();
        for body in [&page.html, &page.text] {
            assert!(body.contains("Access comes back") && !body.contains("keep access"), "{body}");
        }
    }
}

/// What the payer or Stripe chose is text, wherever it stands, and nothing else.
#[test]
fn what_is_put_in_is_text_and_no_html() {
    const EVIL: &str = r#""><script>alert(1)</script><img src=x onerror='x'>&amp;"#;
    for kind in LetterKind::ALL {
        let letter = Letter {
            product: EVIL.to_owned(),
            support: Some(EVIL.to_owned()),
            name: Some(EVIL.to_owned()),
            plan: Some(EVIL.to_owned()),
            previous_plan: Some(EVIL.to_owned()),
            until: Some(EVIL.to_owned()),
            amount: Some(EVIL.to_owned()),
            link: Some(Link::new(format!("https://x.example/{EVIL}"))),
            ..full(kind)
        };
        let page = render(&letter).unwrap();
        for evil in ["<script", "<img", "onerror='"] {
            assert!(!page.html.contains(evil), "{kind:?}: {}", page.html);
        }
        // In plain text it stands as it is.
        assert!(page.text.contains("<script>"), "{kind:?}");
    }
}

/// A subject is one line whatever is put in: the domain has taken line ends out, and here none can come in.
#[test]
fn a_subject_is_one_line_that_names_the_product() {
    for kind in LetterKind::ALL {
        let page = render(&full(kind)).unwrap();
        assert!(page.subject.starts_with("Acme AI: ") && !page.subject.contains(['\r', '\n']), "{kind:?}: {}", page.subject);
        assert!(page.subject.len() < 78, "{}", page.subject);
        assert!(!page.text.contains("Subject:") && !page.text.contains("\n\n\n"), "{}", page.text);
    }
}

#[test]
fn a_body_loads_nothing_and_fits_every_screen() {
    for kind in LetterKind::ALL {
        let html = render(&full(kind)).unwrap().html;
        for remote in ["<img", "<link", "<script", "@import", "url("] {
            assert!(!html.contains(remote), "{kind:?} loads {remote}");
        }
        for needed in
            ["lang=\"en\"", "color-scheme", "prefers-color-scheme: dark", "name=\"viewport\"", "<main", "<h1>", "<title>"]
        {
            assert!(html.contains(needed), "{kind:?} lacks {needed}");
        }
        // Mail services cut a body at about 100 KB.
        assert!(html.len() < 8_000, "{kind:?} has {} bytes", html.len());
    }
}

/// The HTML says what the text says.
#[test]
fn both_bodies_hold_the_same_facts() {
    for kind in LetterKind::ALL {
        let letter = full(kind);
        let page = render(&letter).unwrap();
        let link = letter.link.as_ref().map(|link| link.expose().to_owned());
        let facts = [letter.name, letter.plan, letter.previous_plan, letter.until, letter.amount, link, letter.support];
        for fact in facts.into_iter().flatten() {
            assert!(page.html.contains(&fact) && page.text.contains(&fact), "{kind:?}: {fact}");
        }
    }
}
