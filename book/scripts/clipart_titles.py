"""What the clip art is called: captions, keywords and concepts, from titles that were not clean.

**Captions.** Openclipart's titles are of many kinds: "Farfalla semplice", "Clipart by Nicu
Buculei - bee", "Various Cliparts", "glace_01", "Part of the Flat Icon Collection (Wed Aug 25
23:29:46 2004)". No rule makes captions of these. So every drawing that may come into the data
set was looked at on a contact sheet, and ``clipart_captions.tsv`` holds, for each one that was
kept, its path in the package, a plain English caption and, where the package's folder does not
fit, a category. A title that was right is kept in lower case. What is not in the table was
dropped: what a reader could not name, near-copies and black-and-white copies of coloured
drawings, pictures that are text or diagrams, maps of regions, flags and arms, portraits of real
people, nudes, trademarks and mascots, and files that Debian drew with "Linked Image Not Found".

**Keywords** are the authors' own, mended by rule (`keywords`).

**Concepts.** The object that a caption names (`noun`) is its concept, and where an emoji shows
the same object (`emoji_name`), the emoji's concept is taken. So one hash splits both data sets
in the same way, and no concept is in the training set of one and the test set of the other.
"""

# ruff: noqa: SIM905 (lists of words read best as text)
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

TABLE = Path(__file__).with_name("clipart_captions.tsv")


def table() -> list[tuple[str, str, str]]:
    """Path without suffix, caption and category of every drawing that is kept, by path."""
    rows = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        path, caption, *category = line.split("\t")
        rows.append((path, caption, category[0] if category else folder(path)))
    return rows


def folder(path: str) -> str:
    """The category that the package's folder stands for."""
    return path.split("/")[0].replace("_", " ")


# Keywords ---------------------------------------------------------------------------------------

# Keywords that say nothing of the picture: how the file was made, by whom and for what, where it
# was put, brands, places, and slips.
NOISE = frozenset(
    """
    accueil action activities activity aids airbus anzac aoste apparatus appicon application
    arts atari aussie auto bamby big binding boeing break bright brisgeek brozo buran burner
    burnerobject burnerobjects button bypasslopper bypasspruner carbohydrate cccp celebrity cell
    character chevrolet chevy clean clie clip color colour commercial common communion compact
    concorde cover crash creature crepuscular cuppa cuptazzacolazione cut d'aosta day death
    desert deserts design desktop destroy discordia display dodge drawing ean eat ebay edison
    eiffel elegant en experiences extraordinary fanart fast fest festive file filesystem find
    flat flourish foul french front gene genealogy go gogh gray greenskin greyling gsm hash
    header help hole hopper hummer icon icons idea ideas illustration image imformation india
    indiana info information insecure io italy jeep jensen jumbo kamal kawai knowledge
    landcruiser latinamerica layout lcd lindorm lindworm logo logos looking lovely lumen
    mathsymbol mecanica menu mercator mid midautumn mig mimeicon model modern monochrome
    monotreme mt_hood multiplying musichall mythological nations neon nice nimbochromis
    ninjastar nitrox nox noze nymb object objects odkurzacz old one openclipart oregon outside
    page paragraph paris paul pc pda picture pimp piracy place places plasma pogotowia pop
    prague pretty print product profile propulsion protein pudim puller pulsante pulsanti quick
    rating rca reference rod roller roundpoint rubik saint salon schwoo shape shot sim skoda
    slim slon slouch small snap sparkling speak stick stirrer style sucker sudden svg symbol
    symbols terrible text theme think thinking tile toyota trimmer ugly umts unit universal
    unlocked unsorted upc ussr utils valle van vegetal venus venustus vgcats vhs vincent word
    words writer young zoo
    """.split()
)

# Misspelt, run together, foreign, American or plural, and what is meant.
MENDED = {
    "africa": "Africa", "african": "African", "afrika": "Africa", "afrikan": "African",
    "airlines": "airline", "airplane": "aeroplane", "airtravel": "air travel",
    "ambulans": "ambulance", "animale": "animal", "animali": "animal", "animals": "animal",
    "architettura": "architecture", "asia": "Asia", "australia": "Australia",
    "australian": "Australian", "automne": "autumn", "automobiles": "automobile",
    "ballon": "balloon", "balloons": "balloon", "beatle": "beetle", "bike": "bicycle",
    "binocular": "binoculars", "bobine": "reel", "bodypart": "body part", "bones": "bone",
    "books": "book", "bowsaw": "bow saw", "bugs": "bug", "bullethole": "bullet hole",
    "bunny": "rabbit", "burger": "hamburger", "calebasse": "bowl", "canada": "Canada",
    "cartooon": "cartoon", "cdplayer": "music player", "cdrom": "compact disc",
    "cellular": "mobile phone", "celtic": "Celtic", "champignon": "mushroom", "chili": "chilli",
    "christianity": "Christianity", "christmas": "Christmas",
    "christmas tree": "Christmas tree", "claws": "claw", "clouds": "cloud", "clubs": "club",
    "cochon": "pig", "coins": "coin", "containers": "container", "corndog": "corn dog",
    "cornia": "frame", "crawfish": "crayfish", "derbouka": "drum", "desserts": "dessert",
    "diagrams": "diagram", "diaper": "nappy", "digicam": "digital camera", "djambe": "drum",
    "dna": "DNA", "doors": "door", "dragonly": "dragonfly", "drinks": "drink",
    "dvb": "television", "ears": "ear", "earth": "Earth", "earth globe northamerica": "Earth",
    "easter": "Easter", "egypt": "Egypt", "eiffeltower": "tower", "elefant": "elephant",
    "engrenagem": "cogwheel", "envelope mail symbol": "envelope", "europe": "Europe",
    "eyebrows": "eyebrow", "eyes": "eye", "fall": "autumn", "fangs": "fang",
    "farfalla": "butterfly", "fastner": "fastener", "fatherchristmas": "Father Christmas",
    "feet": "foot", "felini": "feline", "felino": "feline", "fireengine": "fire engine",
    "firestation": "fire station", "flags": "flag", "flowerpot": "flower pot",
    "flowers": "flower", "folder symbol": "folder", "foodfruits": "fruit",
    "football pitch sport soccer": "football", "forbici": "scissors", "friends": "friend",
    "fries": "french fries", "fruits": "fruit", "fungi": "fungus", "games": "game",
    "garbage": "rubbish", "geagraphy": "geography", "gifts": "gift",
    "gps": "satellite navigation", "grapes": "grape", "gull": "seagull",
    "gymnastic": "gymnastics", "halloween": "Halloween", "handphone": "mobile phone",
    "hands": "hand", "headohones": "headphones", "hot": "heat", "hourglass symbol": "hourglass",
    "icecream": "ice cream", "icecube": "ice cube", "indian": "Indian", "japanese": "Japanese",
    "jewelry": "jewellery", "joypad": "game controller", "karetka": "ambulance",
    "keyboard symbol": "keyboard", "kids": "child", "ladybug": "ladybird",
    "landscapes": "landscape", "leafrake": "rake", "leafs": "leaf", "leaves": "leaf",
    "lightbulb": "light bulb", "lights": "light", "lips": "lip", "lotas": "lotus",
    "loupe": "magnifying glass", "maetgrinder": "meat grinder", "magnifing": "magnifying glass",
    "magnifying": "magnifying glass", "mailbox symbol": "mailbox", "maison": "house",
    "mallot": "mallet", "mammals": "mammal", "maraca": "maracas", "mexican": "Mexican",
    "mexico": "Mexico", "moon space": "moon", "mouse symbol": "mouse", "movie": "film",
    "musicstuff": "music", "musicsym": "music", "muslim": "Muslim", "networksym": "network",
    "noel": "Christmas", "northamerica": "North America", "oceania": "Oceania",
    "oliphant": "elephant", "organizer": "organiser", "ours": "bear", "paper symbol": "paper",
    "papillon": "butterfly", "peacesymbol": "peace", "pen symbol": "pen",
    "peperoncino": "chilli", "pere noel": "Father Christmas", "perogies": "dumpling",
    "pesce": "fish", "phases": "phase", "phone": "telephone", "pick-up": "pickup truck",
    "piment": "chilli", "pirates": "pirate", "planes": "plane", "plants": "plant",
    "plantsvegetablesonion": "onion", "printer symbol": "printer", "railroad": "railway",
    "rails": "railway", "rana": "frog", "reactors": "reactor", "recyclables": "recycling",
    "recycle": "recycling", "religholiday": "religious holiday", "rings": "ring",
    "roadsign": "road sign", "roadtravel": "road travel", "rubish": "rubbish",
    "sakura": "cherry blossom", "sandals": "sandal", "santa": "Father Christmas",
    "santa claus": "Father Christmas", "saphire": "sapphire", "sapin de noel": "Christmas tree",
    "sax": "saxophone", "science space earth globe north star polaris": "Earth",
    "scissors symbol": "scissors", "shoeprint": "shoe print", "shoes": "shoe", "signs": "sign",
    "silhouet": "silhouette", "skies": "sky", "soccer": "football", "softdrink": "soft drink",
    "space astronomy planet earth": "Earth", "space astronomy planet jupiter": "planet",
    "space astronomy planet mars": "planet", "space astronomy planet saturn": "planet",
    "sports": "sport", "stamper": "stapler", "stars": "star", "stickmen": "stick figure",
    "straws": "straw", "symbol romance people": "romance", "teracotta": "terracotta",
    "thanksgiving": "Thanksgiving", "tigerorangegreenvector": "tiger", "tools": "tool",
    "toothedwhale": "whale", "toys": "toy",
    "traffic signal man stop go sign pedestrian": "traffic light", "trash": "rubbish",
    "trees": "tree", "tv": "television", "usholiday": "holiday", "usmail": "mail",
    "utensile": "utensil", "vacation": "holiday", "valentine": "Valentine",
    "valentines": "Valentine", "vanoce": "Christmas", "vegetables": "vegetable",
    "vegitable": "vegetable", "vehicles": "vehicle", "voip": "telephone", "voiture": "car",
    "volley": "volleyball", "weapons": "weapon", "weathersym": "weather", "wheels": "wheel",
    "wilflife": "wildlife", "windows": "window", "wings": "wing", "womaneyes": "eye",
    "xmas": "Christmas", "xmass": "Christmas", "xmass tree": "Christmas tree",
}  # fmt: skip


def keywords(raw: Iterable[str], caption: str) -> list[str]:
    """The authors' keywords, mended; the caption's object when none is left.

    Dropped are what is not made of English letters (numbers, addresses, folder names with
    underscores, leftovers of a program such as ``hash(0x849dc78)``), what has more than two
    words, which is a person's name or a sentence, and `NOISE`.
    """
    found = []
    for word in raw:
        word = " ".join(word.lower().split())
        word = MENDED.get(word, word)
        plain = re.fullmatch(r"[A-Za-z]{2,}([ -][A-Za-z]+)?", word)
        if plain and word.lower().replace(" ", "_") not in NOISE:
            found.append(word)
    return list(dict.fromkeys(found)) or [noun(caption)]


# Concepts ---------------------------------------------------------------------------------------

COLOURS = frozenset(
    "black blue bronze brown colourful golden green grey orange pink purple red silver white "
    "yellow".split()
)
# "slice of pizza" is about pizza, but "map of Africa" is about a map.
MEASURES = frozenset(
    "ball bottle bottles bowl branch bunch can cans cup drop face flock glass glasses group half "
    "head loaf mug pair piece plate pot profile roll sheet sheets slice stack".split()
)
# Words behind which a caption only says more about its object.
ENDS = frozenset(
    "and at behind by carrying coming counting doing dressed driving eating from full giving "
    "holding in into lying of on opening over playing pointing pushing reading ringing seen "
    "showing sleeping spreading stretching throwing to under with without".split()
)
PLURALS = {
    "boxes": "box", "buses": "bus", "butterflies": "butterfly", "cherries": "cherry",
    "children": "child", "feet": "foot", "fries": "fries", "glasses": "glasses",
    "knives": "knife", "leaves": "leaf", "men": "man", "peaches": "peach", "people": "people",
    "potatoes": "potato", "radishes": "radish", "scissors": "scissors", "teeth": "tooth",
    "tomatoes": "tomato", "women": "woman", "Christmas": "Christmas", "cactus": "cactus",
    "octopus": "octopus", "mantis": "mantis", "rhinoceros": "rhinoceros", "Mars": "Mars",
    "Venus": "Venus", "binoculars": "binoculars", "pliers": "pliers", "shears": "shears",
}  # fmt: skip
# Objects of more than one word, which by their last word would be something else.
COMPOUNDS = frozenset(
    word.replace("_", " ")
    for word in """
    alarm_clock baby_bottle bar_chart baseball_bat baseball_glove billiard_ball birthday_cake
    bow_tie bullet_hole candy_cane cherry_blossom chess_bishop chess_king chess_knight
    chess_pawn chess_queen chess_rook christmas_tree cigarette_lighter circular_arrow
    clothes_iron coffee_machine compact_disc computer_monitor computer_mouse concrete_mixer
    corn_dog crescent_moon cricket_bat diving_cylinder dollar_sign drawing_pin drum_kit
    euro_sign exclamation_mark eye_test_chart fighter_plane film_clapper film_projector
    film_reel film_strip fir_tree fire_engine fire_extinguisher fire_station floppy_disk
    food_mixer football_helmet football_player forklift_truck french_fries french_horn full_moon
    game_controller gibbous_moon grain_elevator half_moon hand_grenade hard_disk hot_dog
    hot-air_balloon ice_cream_cone ice_cube ice_lolly ice_skate ice_skater ironing_board
    juice_box lightning_bolt magnifying_glass meat_grinder microphone_stand milk_carton
    mobile_phone music_player musical_note oil_lamp oil_pump onion_ring paint_roller palm_tree
    paper_bag paper_clip paper_plane paw_print piano_key picture_frame piggy_bank pill_bottle
    postage_stamp power_symbol puzzle_cube racing_car radio_tower record_player recycling_bin
    recycling_symbol ring_binder roller_skate rubber_duck rubber_stamp rugby_ball safety_pin
    sailing_boat sailing_ship satellite_dish shoe_print sleeping_bag sports_car stick_figure
    sticking_plaster sticky_tape street_sign table_tennis_bat tape_measure teddy_bear
    telephone_receiver tennis_racket test_tube thought_bubble throwing_star top_hat toy_block
    toy_train traffic_light trumpet_player usb_stick vacuum_cleaner warning_sign waste_bin
    water_skier water_tower wedding_cake
    """.split()
)
# Captions whose object the rule does not find.
NOUNS = {
    "Australia on the globe": "globe", "Eiffel Tower": "Eiffel Tower",
    "Father Christmas": "Father Christmas", "apple core": "apple",
    "arrow coming out of a box": "box", "arrow with a heart": "arrow and heart",
    "beagle": "dog", "biohazard symbol": "biohazard", "black kitten": "cat",
    "block of flats": "block of flats", "branch of an olive tree": "olive branch",
    "bulldog puppy": "dog", "burning cigar": "cigarette", "capital of a column": "column",
    "car trip to the beach": "car", "card suits": "card suit",
    "chairs under a parasol": "parasol", "chicken burger": "hamburger",
    "colourful shorts": "shorts", "dachshund": "dog", "digit five": "digit",
    "digit four": "digit", "digit one": "digit", "digit six": "digit", "digit three": "digit",
    "digit two": "digit", "drop of water": "drop", "egg muffin": "sandwich", "fawn": "deer",
    "feet in sandals": "sandal", "flag in a golf hole": "golf flag",
    "glass of ice water": "glass", "golf course with a flag": "golf flag",
    "group of people": "group", "hands on gymnastic rings": "gymnastic rings",
    "hash browns": "hash browns", "head of a bulldog": "dog", "karate kick": "karate",
    "kitchen utensils in a jar": "jar", "letter in an envelope": "envelope",
    "magic hat and wand": "magic hat", "man on a bicycle": "cyclist",
    "map of the world": "world map", "martini glass": "cocktail",
    "network of computers": "computer", "peace symbol": "peace symbol",
    "pencil on a sheet of paper": "memo", "people at a table": "group",
    "people in a bar": "group", "person doing yoga": "yoga",
    "person lifting weights": "weightlifter", "planet Jupiter": "planet",
    "planet Mars": "planet", "planet Saturn": "planet", "planet Venus": "planet",
    "plate of breakfast": "plate", "plate of eggs and bacon": "plate",
    "plate of french fries": "plate", "plate of spaghetti": "plate",
    "pot of paint and paintbrush": "paint pot", "rabbit in a magic hat": "magic hat",
    "red diamond": "card suit", "red jack": "king", "salamander": "lizard",
    "starfish and fish": "fish", "three people": "group", "thumbs up": "thumbs up",
    "toadstool": "mushroom", "two women dancing": "dancer",
    "wheelchair symbol": "wheelchair symbol", "yin and yang": "yin and yang",
}  # fmt: skip

# Objects that an emoji shows under another name.
EMOJI = {
    "Earth": "globe showing Americas", "Eiffel Tower": "Tokyo tower",
    "Father Christmas": "Santa Claus", "aeroplane": "airplane", "angel": "baby angel",
    "angelfish": "fish", "apple": "red apple", "arrow": "right arrow",
    "backpacker": "person walking", "bag": "shopping bags", "ball": "soccer ball",
    "bamboo": "pine decoration", "barn": "house", "baseball bat": "baseball",
    "baseball glove": "baseball", "bee": "honeybee", "beer": "beer mug", "bible": "closed book",
    "billiard ball": "pool 8 ball", "blackbird": "bird", "blacksmith": "factory worker",
    "block of flats": "office building", "boat": "sailboat", "boot": "hiking boot",
    "bow": "ribbon", "bow tie": "necktie", "bowl": "bowl with spoon", "box": "package",
    "breakdancer": "man dancing", "bride": "person with veil", "builder": "construction worker",
    "building": "classical building", "bulb": "light bulb", "bull": "ox",
    "bulldozer": "tractor", "cabin": "house", "cake": "birthday cake",
    "camcorder": "video camera", "campfire": "fire", "can": "canned food",
    "candy cane": "candy", "cap": "billed cap", "car": "automobile",
    "card suit": "diamond suit", "carpenter": "construction worker",
    "cassette": "videocassette", "caterpillar": "bug", "cello": "violin",
    "cheese": "cheese wedge", "cheetah": "leopard", "chemist": "scientist",
    "chess bishop": "chess pawn", "chess king": "chess pawn", "chess knight": "chess pawn",
    "chess queen": "chess pawn", "chess rook": "chess pawn", "circular arrow": "right arrow",
    "clock": "one o’clock", "clover": "four leaf clover", "clown": "clown face",
    "club": "club suit", "cocktail": "cocktail glass", "coffee": "hot beverage",
    "cogwheel": "gear", "compact disc": "optical disk", "computer": "desktop computer",
    "computer monitor": "desktop computer", "cookbook": "closed book", "corn": "ear of corn",
    "couch": "couch and lamp", "crayfish": "lobster", "cricket bat": "cricket game",
    "cross": "latin cross", "crow": "bird", "cup": "hot beverage", "cyclist": "person biking",
    "dancer": "woman dancing", "dartboard": "bullseye", "diamond": "gem stone",
    "diary": "closed book", "dice": "game die", "digit": "keycap: 1", "dinosaur": "sauropod",
    "doctor": "health worker", "dollar sign": "heavy dollar sign", "drawing pin": "pushpin",
    "drink": "cup with straw", "drop": "droplet", "drum kit": "drum",
    "dumbbell": "person lifting weights", "eraser": "pencil", "euro sign": "heavy dollar sign",
    "exclamation mark": "red exclamation mark", "explorer": "person", "eyeball": "eye",
    "falcon": "eagle", "fez": "woman’s hat", "fighter plane": "airplane", "film": "film frames",
    "film clapper": "clapper board", "film reel": "film projector", "film strip": "film frames",
    "finger": "index pointing up", "fir tree": "evergreen tree", "fire station": "fire engine",
    "fireman": "firefighter", "fist": "oncoming fist", "flame": "fire", "flask": "alembic",
    "flip-flop": "thong sandal", "flower": "blossom", "folder": "file folder",
    "football": "soccer ball", "football helmet": "american football",
    "football player": "soccer ball", "game controller": "video game",
    "garland": "party popper", "gibbous moon": "waxing gibbous moon", "glass": "tumbler glass",
    "globe": "globe showing Americas", "goldfish": "fish", "golf flag": "flag in hole",
    "golfer": "person golfing", "grasshopper": "cricket", "groom": "person in tuxedo",
    "group": "people hugging", "half moon": "first quarter moon", "hand": "raised hand",
    "handprint": "hand with fingers splayed", "hat": "woman’s hat", "headset": "headphone",
    "heart": "red heart", "hen": "chicken", "hiker": "person walking", "honeycomb": "honey pot",
    "hourglass": "hourglass done", "ice cream cone": "soft ice cream", "ice cube": "ice",
    "ice lolly": "ice cream", "ice skater": "ice skate", "insect": "bug",
    "island": "desert island", "juice": "beverage box", "juice box": "beverage box",
    "karate": "martial arts uniform", "king": "prince", "knife": "kitchen knife",
    "ladybird": "lady beetle", "lamp": "couch and lamp", "landscape": "national park",
    "lantern": "red paper lantern", "lasagna": "spaghetti", "leaf": "fallen leaf",
    "lemonade": "cup with straw", "lightning": "high voltage", "lightning bolt": "high voltage",
    "lip": "mouth", "lock": "locked", "magic hat": "top hat",
    "magnifying glass": "magnifying glass tilted left",
    "mailbox": "closed mailbox with raised flag", "map": "world map", "mask": "performing arts",
    "microphone stand": "microphone", "milk carton": "glass of milk",
    "miner": "construction worker", "mitten": "gloves", "monster": "alien monster",
    "moon": "full moon", "mother": "woman", "muffin": "cupcake", "mug": "hot beverage",
    "note": "memo", "nurse": "health worker", "oil lamp": "diya lamp", "oil pump": "oil drum",
    "olive branch": "olive", "orange": "tangerine", "orca": "whale", "padlock": "locked",
    "painter": "artist", "palette": "artist palette", "pan": "cooking",
    "paper": "page facing up", "paper clip": "paperclip", "parasol": "beach with umbrella",
    "parcel": "package", "parchment": "scroll", "pepper": "bell pepper",
    "piano": "musical keyboard", "piano key": "musical keyboard",
    "picture frame": "framed picture", "pigeon": "dove", "pill bottle": "pill",
    "pistol": "water pistol", "planet": "ringed planet", "plate": "fork and knife with plate",
    "pliers": "clamp", "policeman": "police officer", "policewoman": "police officer",
    "pot": "pot of food", "present": "wrapped gift", "pudding": "custard",
    "pumpkin": "jack-o-lantern", "punk": "man", "queen": "princess", "quill": "feather",
    "radish": "root vegetable", "record": "optical disk", "rifle": "water pistol",
    "rubber duck": "duck", "rugby ball": "rugby football", "sailing boat": "sailboat",
    "sailing ship": "sailboat", "sailor": "person", "sandal": "thong sandal",
    "satellite dish": "satellite antenna", "sausage": "hot dog", "saw": "carpentry saw",
    "screw": "nut and bolt", "seagull": "bird", "server": "desktop computer", "sheep": "ewe",
    "shirt": "t-shirt", "shoe": "running shoe", "sign": "no entry", "signpost": "placard",
    "skyline": "cityscape", "skyscraper": "office building", "sledge": "sled",
    "smiley": "grinning face", "sombrero": "woman’s hat", "soup": "pot of food",
    "spade": "spade suit", "sports car": "racing car", "sticking plaster": "adhesive bandage",
    "streamer": "party popper", "suitcase": "luggage", "surfboard": "person surfing",
    "swallow": "bird", "sweet": "candy", "sword": "crossed swords", "symbol": "female sign",
    "table tennis bat": "ping pong", "target": "bullseye", "tea": "hot beverage",
    "telephone receiver": "telephone", "tennis racket": "tennis", "tepee": "tent",
    "thought bubble": "thought balloon", "thundercloud": "cloud with lightning",
    "toy train": "locomotive", "traffic light": "vertical traffic light",
    "tree": "deciduous tree", "truck": "delivery truck", "turban": "person wearing turban",
    "van": "delivery truck", "wall": "brick", "wallet": "purse", "warning sign": "warning",
    "wasp": "honeybee", "waste bin": "wastebasket", "water skier": "person surfing",
    "wedding cake": "birthday cake", "weightlifter": "person lifting weights",
    "wine": "wine glass", "woodpecker": "bird", "wool": "yarn", "yin and yang": "yin yang",
    "yoga": "person in lotus position",
}  # fmt: skip
# Objects that only share a word with an emoji.
NOT_EMOJI = frozenset({"knot"})


def singular(word: str) -> str:
    """The singular of an English noun, as far as the captions need it.

    >>> singular("cherries"), singular("boots"), singular("glass"), singular("compass")
    ('cherry', 'boot', 'glass', 'compass')
    """
    if word in PLURALS:
        return PLURALS[word]
    return re.sub(r"(?<=\w\w\w)(?<![su])s$", "", word)


def noun(caption: str) -> str:
    """The object that a caption names: one word or a compound, singular.

    >>> noun("two red billiard balls"), noun("slice of apple pie"), noun("wolf in the snow")
    ('billiard ball', 'pie', 'wolf')
    """
    if caption in NOUNS:
        return NOUNS[caption]
    words = [word for word in caption.split() if word not in ("a", "an", "the", "its")]
    if "of" in words:
        at = words.index("of")
        if words[at - 1] in MEASURES:
            words = words[at + 1 :]
    for i in range(1, len(words)):
        joins_colours = words[i] == "and" and words[i - 1] in COLOURS
        if words[i] in ENDS and not joins_colours:
            words = words[:i]
            break
    words = [*words[:-1], singular(words[-1])]
    for start in range(len(words)):
        phrase = " ".join(words[start:])
        if phrase.lower() in COMPOUNDS:
            return phrase
    return words[-1]


def concept(caption: str, emoji: Mapping[str, str]) -> str:
    """What a caption is about: the concept of the emoji that shows it, or else its noun.

    Args:
        caption: of a drawing.
        emoji: concepts of the emoji by their names, as `emoji_concepts` gives them.

    Raises:
        KeyError: if `EMOJI` names an emoji that does not exist.
    """
    word = noun(caption)
    if word in EMOJI:
        return emoji[singular_name(EMOJI[word])]
    return word if word in NOT_EMOJI else emoji.get(singular_name(word), word)


def emoji_concepts(rows: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Concepts of the emoji by their names in lower case and singular; the first one counts.

    Args:
        rows: name and concept of every emoji.
    """
    found: dict[str, str] = {}
    for name, value in rows:
        found.setdefault(singular_name(name), value)
    return found


def singular_name(name: str) -> str:
    """A name in lower case, its last word in the singular."""
    *first, last = name.lower().split()
    return " ".join([*first, singular(last)])
