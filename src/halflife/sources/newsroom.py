"""The vocabulary of the synthetic newsroom: subjects, verbs and objects of twelve topics."""

Words = tuple[list[str], list[str], list[str]]

TOPICS: dict[str, Words] = {
    "football": (
        ["striker", "goalkeeper", "midfielder", "football coach", "league leaders", "the home side"],
        ["scores", "saves", "celebrates", "misses", "dreams of"],
        ["a late penalty", "the cup final", "a derby win", "a hat-trick", "the transfer deadline"],
    ),
    "cooking": (
        ["pastry chef", "home cook", "street food vendor", "baker", "the village kitchen"],
        ["bakes", "simmers", "seasons", "reinvents", "shares"],
        ["sourdough bread", "a lentil soup recipe", "roast garlic pasta", "plum cake", "a spicy curry"],
    ),
    "space": (
        ["astronaut", "rover", "space telescope", "rocket crew", "lunar probe"],
        ["photographs", "orbits", "lands near", "discovers", "measures"],
        [
            "a distant galaxy",
            "the moon's far side",
            "an exoplanet",
            "the rings of Saturn",
            "a martian crater",
        ],
    ),
    "finance": (
        ["central bank", "stock market", "hedge fund", "bond traders", "the treasury"],
        ["raises", "cuts", "fears", "prices in", "shrugs off"],
        ["interest rates", "quarterly earnings", "inflation figures", "a bond sell-off", "dividend payouts"],
    ),
    "music": (
        ["jazz pianist", "opera singer", "indie band", "cellist", "hip hop producer"],
        ["records", "releases", "rehearses", "performs", "remixes"],
        ["a debut album", "a string quartet", "a summer single", "a forgotten symphony", "a live concert"],
    ),
    "medicine": (
        ["surgeon", "vaccine trial", "hospital ward", "nurses", "heart clinic"],
        ["treats", "prevents", "diagnoses", "screens for", "studies"],
        ["a rare infection", "high blood pressure", "childhood asthma", "an antibiotic", "chronic pain"],
    ),
    "gardening": (
        ["allotment owner", "rose grower", "botanist", "orchard keeper", "gardener"],
        ["plants", "prunes", "waters", "composts", "harvests"],
        ["tomato seedlings", "an apple orchard", "wild tulips", "hedge cuttings", "a herb bed"],
    ),
    "motoring": (
        ["carmaker", "racing driver", "electric truck", "mechanic", "vintage roadster"],
        ["unveils", "overtakes", "recharges", "repairs", "test drives"],
        ["a hybrid engine", "a faulty gearbox", "a new sedan", "worn brake pads", "a motorway lap record"],
    ),
    "politics": (
        ["prime minister", "senator", "opposition party", "parliament", "city mayor"],
        ["debates", "vetoes", "campaigns for", "votes on", "denounces"],
        ["an election law", "the coalition budget", "a border treaty", "a referendum", "tax reform"],
    ),
    "computing": (
        ["software engineer", "chip designer", "open source team", "data centre", "hacker"],
        ["patches", "compiles", "encrypts", "benchmarks", "debugs"],
        ["a database server", "a quantum processor", "the web browser", "a python library", "cloud storage"],
    ),
    "wildlife": (
        ["wolf pack", "sea turtle", "ranger", "snow leopard", "beekeeper"],
        ["migrates past", "protects", "hunts near", "returns to", "nests in"],
        ["the wetland reserve", "a coral reef", "the old forest", "river otters", "penguin colonies"],
    ),
    "cinema": (
        ["film director", "screenwriter", "lead actress", "documentary maker", "stunt double"],
        ["shoots", "premieres", "edits", "wins an award for", "auditions for"],
        [
            "a silent thriller",
            "a space opera sequel",
            "a box office hit",
            "a black comedy",
            "the festival movie",
        ],
    ),
}
"""Topic name → (subjects, verbs, objects)."""

TAILS = [
    "after a long wait",
    "this weekend",
    "against all odds",
    "for the first time",
    "again",
    "despite the rain",
    "in record time",
    "as neighbours watch",
]
"""Endings that all topics share, so that a title is not its topic alone."""
