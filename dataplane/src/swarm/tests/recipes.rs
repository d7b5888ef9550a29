//! Contents made from what is there: by copies and literals, by a patch, and by recipes that are no good.

use freshet_api::recipe::{Method, Recipe, Step};

use super::field::hash;
use super::*;

fn extents(target: &[u8], base: &[u8], at: u64, head: &[u8]) -> Recipe {
    let length = (target.len() - head.len()) as u64;
    let steps = vec![Step::Literal { length: head.len() as u64 }, Step::Copy { base: 0, offset: at, length }];
    let literals = zstd::bulk::compress(head, 3).unwrap();
    let (target, size) = (hash(target), target.len() as u64);
    Recipe { target, size, bases: vec![hash(base)], method: Method::Extents { steps, literals } }
}

fn patch(target: &[u8], base: &[u8]) -> Recipe {
    let mut delta = Vec::new();
    let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(&mut delta, 3, base).unwrap();
    encoder.long_distance_matching(true).unwrap();
    std::io::Write::write_all(&mut encoder, target).unwrap();
    encoder.finish().unwrap();
    let (target, size) = (hash(target), target.len() as u64);
    Recipe { target, size, bases: vec![hash(base)], method: Method::Patch { delta } }
}

/// A base that is held, one that comes with the same release, and what is made from them.
struct Made {
    old: Vec<u8>,
    new: Vec<u8>,
    image: Vec<u8>,
    index: Vec<u8>,
    small: Vec<u8>,
}

impl Made {
    fn new() -> Self {
        let (old, new) = (content(1, 700_000), content(2, 400_000));
        let image = [b"head of an image".as_slice(), &new[100..]].concat();
        let mut index = old.clone();
        index.splice(3_000..3_010, *b"a few other bytes");
        let small = [b"x".as_slice(), &old[50..60]].concat();
        Self { old, new, image, index, small }
    }

    fn files(&self) -> Vec<File> {
        vec![
            ("pool/old".to_owned(), self.old.clone()),
            ("pool/new".to_owned(), self.new.clone()),
            ("images/image".to_owned(), self.image.clone()),
            ("dists/index".to_owned(), self.index.clone()),
            ("pool/tiny".to_owned(), self.small.clone()),
        ]
    }

    /// The first release has only `old`; the second all, with these recipes.
    async fn copied(&self, recipes: &[(Vec<u8>, Recipe)]) -> (Arc<Field>, Vec<Volunteer>, u64) {
        let field = Field::start().await;
        let volunteers = volunteers(&field, 2).await;
        let files = self.files();
        all_complete(&volunteers, field.publish(&files[..1])).await;
        let before = field.origin_bytes();
        field.bundle(std::slice::from_ref(&self.new), 16 << 10, 64 << 10, recipes);
        all_complete(&volunteers, field.publish(&files)).await;
        volunteers.iter().for_each(|volunteer| same(volunteer, &files));
        let moved = field.origin_bytes() - before;
        (field, volunteers, moved)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_made_is_not_fetched() {
    let made = Made::new();
    let recipes = vec![
        (made.image.clone(), extents(&made.image, &made.new, 100, b"head of an image")),
        (made.index.clone(), patch(&made.index, &made.old)),
        (made.small.clone(), extents(&made.small, &made.old, 50, b"x")),
    ];
    let (field, volunteers, moved) = made.copied(&recipes).await;
    for content in [&made.image, &made.index, &made.small] {
        assert_eq!(field.requests(content), (0, 0));
    }
    assert!(moved <= 400_000 + 3 * 16_384, "{moved} bytes moved");
    let by_recipe = volunteers[0].meter.recipes.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(by_recipe, (made.image.len() + made.index.len() + made.small.len()) as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn recipes_that_are_no_good_cost_one_attempt() {
    let made = Made::new();
    let wrong =
        |target: &[u8], recipe: Recipe| Recipe { target: hash(target), size: target.len() as u64, ..recipe };
    let literals = zstd::bulk::compress(b"too short", 3).unwrap();
    let truncated = Recipe {
        method: Method::Extents { steps: vec![Step::Literal { length: made.image.len() as u64 }], literals },
        ..extents(&made.image, &made.new, 100, b"head of an image")
    };
    // A frame that would unpack to far more than the target has.
    let bomb = Recipe {
        method: Method::Patch { delta: zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap() },
        ..patch(&made.index, &made.old)
    };
    let beyond = Recipe {
        method: Method::Extents {
            steps: vec![Step::Copy { base: 0, offset: u64::MAX - 11, length: made.small.len() as u64 }],
            literals: Vec::new(),
        },
        ..extents(&made.small, &made.old, 50, b"x")
    };
    for recipes in [
        vec![(made.image.clone(), truncated), (made.index.clone(), bomb), (made.small.clone(), beyond)],
        vec![
            (
                made.image.clone(),
                wrong(&made.image, extents(&made.image, &made.new, 99, b"head of an image")),
            ),
            (made.index.clone(), wrong(&made.index, patch(&content(5, made.index.len()), &made.old))),
        ],
    ] {
        let wrong: Vec<Vec<u8>> = recipes.iter().map(|(target, _)| target.clone()).collect();
        let (field, _volunteers, _) = made.copied(&recipes).await;
        for content in wrong {
            assert_eq!(field.requests(&content), (0, 2), "each volunteer fetches it whole, once");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_base_a_recipe_is_worth_nothing() {
    let made = Made::new();
    let recipes = vec![(made.index.clone(), patch(&made.index, &content(77, 900_000)))];
    let (field, _volunteers, _) = made.copied(&recipes).await;
    assert_eq!(field.requests(&made.index), (0, 2));
}
