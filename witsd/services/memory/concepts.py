"""What belongs to what in everyday life: a question for a *pet* is near the *puppy*, one for *illness* near the *flu*.

The ``hash`` embedder has a feature for each group, which is all it knows of meaning. The words before a colon ask for
their whole group; those after it are found by them, and ask for themselves alone (for the *cat* is not for the *dog*).

The groups are kept out of the text index: on conversations of strangers they cost one to two points of recall there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

import attrs

from witsd.services.memory.lexicon import BASE_FORMS
from witsd.services.memory.stems import stem

_GROUPS = """
    family relative kin : mum dad parent sister brother sibling son daughter child uncle aunt cousin grandma
        grandpa nephew niece twin husband wife
    parent : mum dad
    child kid offspring son daughter toddler youngster : baby boy girl teenager twin
    sibling : brother sister twin
    spouse partner : husband wife
    ex former : divorce divorced separated
    romantic relationship love date couple dating : boyfriend girlfriend crush kiss fiance together lover
        partner flirt romance
    marry marriage wedding wed married : engaged propose bride groom honeymoon fiance ring anniversary ceremony
    divorce divorced separate separation : custody
    friend friendship buddy pal mate : colleague neighbour roommate
    pregnant pregnancy birth : baby born newborn expecting
    funeral death die dead pass lose loss grief mourn : funeral grave passed mourning bury deceased widow
    birthday : turn cake candle party
    celebrate celebration party festivity : birthday anniversary wedding feast toast holiday graduation
    holiday vacation trip travel journey getaway : fly flight beach camping hotel abroad tour cruise backpack
        roadtrip visit resort
    camp camping : tent campfire hike sleeping
    place location spot destination : city town village country park beach
    live reside home house residence housing apartment flat : move rent landlord room mortgage roommate
        neighbourhood lodging condo studio
    move relocate relocation moving emigrate : suitcase abroad pack
    abroad foreign overseas : country visa passport immigrant
    country nation hometown origin : sweden germany france spain italy japan china india canada mexico brazil
        portugal england scotland ireland america
    rent lease tenant landlord : flat apartment
    job work career profession occupation employment living employ : nurse teacher engineer doctor lawyer driver
        cook chef manager developer designer office company boss salary colleague hire shift promotion carpenter
        mechanic electrician
    employer company firm business startup : boss office shop store customer client entrepreneur
    boss manager supervisor chief : lead head
    colleague coworker team staff employee : hire assistant apprentice trainee
    quit resign leave : notice
    fire unemployed laid layoff redundant lost : job work employment
    promotion raise : career salary
    interview application apply : job candidate cv resume reference form
    salary wage pay income earn earnings : paid money pound dollar euro
    money financial finance fund funding budget : bank loan pay cost price debt saving invest donation grant
        dollar pound euro cash rent tax
    loan borrow lend debt : bank mortgage owe interest
    buy purchase acquire shop shopping : bought order pay store sell new
    sell sale : sold market stall customer shop auction
    expensive cost price pay : dollar pound euro worth cheap
    gift present : give birthday surprise souvenir
    charity volunteer donate donation volunteering nonprofit : shelter fundraiser homeless raise community cause
        rescue
    environment nature environmental conservation : climate recycle plastic litter pollution sustainability
        wildlife cleanup river forest
    school education study learn class : student teacher college university course exam grade pupil lesson
        homework degree classroom term
    teacher instructor tutor coach mentor trainer : lesson teach class
    university college degree academic : campus professor graduate student thesis lecture major
    exam test : grade pass fail
    graduate graduation : degree diploma college university
    course lesson class workshop training seminar : teacher learn enroll evening
    learn practise practice study : lesson course beginner class
    language speak : english french german spanish portuguese italian japanese chinese polish dutch swedish
        fluent grammar word
    health medical illness sick disease condition : doctor hospital pain surgery medicine diagnosis fever cough
        cold flu asthma cancer stroke heart allergy diabetes virus nurse infection
    injury injure hurt wound accident : broke broken sprain burn cut bruise bleeding fall twisted ankle knee
        scar crutch
    doctor physician : hospital surgeon clinic specialist dentist physio nurse
    hospital clinic : ward surgery nurse doctor unit emergency
    surgery operation operate : surgeon hospital stent knee
    medicine medication drug pill treatment : tablet prescription antibiotic painkiller ibuprofen paracetamol
        dose vaccine therapy
    allergy allergic intolerance intolerant : hives lactose gluten peanut pollen milk rash asthma
    pain ache : hurt sore headache back knee swollen
    sleep rest insomnia : tired nap bed awake wake dream night
    tired exhausted fatigue : sleep sleepy worn exhausting
    stress destress relax unwind calm relaxing : yoga meditation walk bath music nature peaceful overwhelmed
        pressure burnout
    mental therapy therapist counseling counselling psychology counselor : depression anxiety support session
    disability dyslexia disorder learning difficulty : autism adhd wheelchair blind deaf
    diet vegetarian vegan eat : meat vegetable calorie healthy sugar dairy
    weight fitness : gym diet exercise kilo pound
    exercise fitness sport workout training athletic : gym run yoga swim cycling weight football basketball
        tennis climbing soccer jog marathon hike stretching
    run jog running : marathon race sprint trail
    race competition contest compete tournament championship : marathon win medal prize game match trophy sprint
    win award prize trophy medal : first champion nominate honour victory
    team club : league player member
    game match sport : football soccer basketball tennis baseball volleyball score
    play game gaming : videogame console chess cards board puzzle player
    outdoor outdoors : hike camping climb nature trail mountain kayak fish garden
    hike walk hiking trek : trail mountain forest path
    climb climbing : mountain wall rope peak rock
    mountain hill peak summit : climb hike
    water sea ocean : beach lake river swim boat wave sail surf coast harbour
    beach coast seaside shore : sea ocean sand wave surf
    boat ship : sail harbour canoe kayak ferry
    vehicle car transport transportation automobile : truck van bus bike train motorcycle drive motorbike
        scooter taxi garage
    drive driver driving : car road licence
    train rail railway : station platform ticket
    plane fly flight airplane : airport ticket luggage
    commute : bus train bike drive
    accident crash collision : car hit ambulance
    repair fix mend restore : broken broke mechanic workshop tool
    break broken damage : repair crack
    pet : dog cat puppy kitten hamster rabbit parrot bird fish turtle horse guinea snake lizard tortoise
    dog puppy : lurcher labrador retriever poodle terrier shepherd leash bark
    cat kitten : meow purr
    animal wildlife creature : dog cat bird horse fish turtle fox bear cow sheep pig hen rabbit seal whale
        hedgehog pigeon goat duck deer owl wolf insect bee
    bird : parrot pigeon swallow owl hen duck eagle crow robin
    insect bug : bee ant butterfly moth mosquito spider beetle
    bee beekeeping apiary : hive honey swarm colony
    hobby hobbies pastime interest leisure activity activities : paint painting pottery reading music
        photography knit garden cook dance guitar piano chess hike climbing fishing baking drawing crochet
        collect cycling running swim
    art artist artistic creative artwork creativity : paint painting draw drawing sculpture pottery gallery
        exhibition sketch canvas watercolour craft clay photography mural
    paint painting : watercolour canvas brush portrait landscape easel sunset
    exhibition gallery museum show : picture painting art display
    draw drawing : sketch pencil
    pottery ceramic : clay kiln bowl pot cup mug
    photo photography camera : shot lens
    craft handmade make create : knit sew wood crochet pottery
    wood carpentry woodwork : table chair bench carve saw timber ash oak walnut board shelf
    furniture : table chair bed desk sofa shelf wardrobe
    tool equipment machine : saw drill hammer clamp press
    build construct construction : built house
    music musical musician : song guitar piano violin cello drum band concert sing singer instrument orchestra
        melody choir flute trumpet jazz album tune
    instrument : guitar piano violin cello drum flute trumpet clarinet saxophone ukulele harp dulcimer accordion
    concert gig performance perform recital show : stage band audience orchestra festival play
    sing singer singing : song choir voice karaoke
    song tune : lyric sing melody
    dance dancing dancer : ballet salsa tango studio waltz
    theatre drama acting actor : play stage audience role script
    film movie cinema : watch actor director series scene
    tv television series show : watch episode season
    read book reading novel literature : author story page library chapter fantasy poem writer bookshelf
    author writer writing write : book novel poem story screenplay script blog publish
    poem poetry : poet verse rhyme
    news newspaper article journalist : reporter press
    write letter mail : post postcard envelope email wrote
    food eat meal dish cuisine cook : pasta pizza soup bread cheese meat fish salad rice cake dinner lunch
        breakfast recipe taste sushi curry chicken vegetable dumpling noodle
    cook cooking cuisine chef : recipe kitchen dish bake oven dinner
    bake baking baker bakery : bread cake bun cookie oven flour pie dough knead
    dessert sweet : cake cookie chocolate ice pie candy pudding
    drink beverage : coffee tea wine beer juice water cocoa cocktail
    alcohol : wine beer cocktail whisky pub bar stout cider
    restaurant dine cafe : menu waiter dinner lunch diner bistro
    fruit : apple pear plum cherry banana berry strawberry grape lemon
    vegetable : carrot potato tomato leek spinach cabbage onion
    meat : steak chicken beef pork sausage meatball
    garden gardening gardener plant grow : flower tomato seed vegetable soil rose tulip tree plot
    flower : rose tulip sunflower lily daisy
    tree : oak pine pear apple maple ash walnut
    farm farmer : field cow barn harvest horse
    weather : rain sun snow storm cloud cold hot wind degree
    season : spring summer autumn winter
    star astronomy space : telescope planet saturn moon meteor sky
    science scientist research : experiment lab study
    technology tech computer : laptop software app code phone programming robot internet
    programming software developer code : app computer bug database pipeline
    data database : table row record backup
    phone call contact : rang ring text message
    religion religious faith church spiritual belief : mosque temple pray god bible priest synagogue
    political politics : vote election protest rally government activist campaign
    activism activist equality right : protest rally march pride campaign
    lgbtq gay queer transgender : pride transition identity gender rainbow
    identity self : transition gender accept
    adopt adoption : agency foster shelter rescue orphan
    community support group : together meeting member
    refugee immigrant asylum : visa border war permit
    law legal lawyer : court judge contract attorney police
    police crime : theft stolen thief arrest
    contract agreement document : sign paper form lease
    emotion feel feeling mood : happy sad angry proud scared nervous excited afraid grateful anxious cry lonely
    happy joy glad delight : thrilled excited smile
    sad unhappy upset depressed : cry tear grief down heartbroken
    afraid fear scare scared worry worried anxious nervous : anxiety terrify panic
    angry anger annoyed : mad furious rage
    proud pride achievement accomplish accomplishment : win succeed finish success
    dream goal plan ambition aspiration future want hope : wish someday
    reason motivate motivation inspire inspiration : because inspired
    decide decision choose choice : pick made
    idea suggest suggestion recommend recommendation advice advise : tip try should
    help assist support aid : volunteer hand
    problem trouble difficulty challenge struggle obstacle setback : hard broken fail wrong
    success successful : sold win
    change : new different
    favourite prefer preference like love enjoy : best adore
    dislike hate : awful terrible worst avoid
    clothes clothing wear outfit fashion dress : shirt jacket shoe coat hat trousers skirt jumper boot suit
        scarf uniform
    shoe : boot sneaker sandal trainer
    jewellery jewelry : ring necklace bracelet earring pendant
    colour : red blue green yellow purple black white orange pink brown grey
    hair haircut : dye dyed curl blond cut
    tattoo : ink
    look appearance : hair tall eye
    old age : year turned born
    name call named : nickname
    number amount count quantity : hundred dozen thousand total
    group band : member
    meeting appointment conference : date office
    event : festival concert party fair parade show conference
    festival fair : stage booth market
    market stall : sell vendor customer
    shop store : customer sell counter
    customer client : order
    order commission : deliver delivery
    tradition custom ritual : every year always
    christmas xmas : tree eve santa
    memory remember souvenir nostalgia : childhood past photo
    childhood young : grew school kid
    grandparent : grandma grandpa
    military army soldier : war veteran navy
    emergency disaster : fire flood storm hurricane earthquake ambulance
    power electricity : light lamp cable
    fire burn : flame smoke
    clean cleaning : wash tidy litter
    toy : doll lego puzzle plush
    swim swimming : pool lake beach
    bike cycling cycle : ride wheel helmet
    yoga meditation mindfulness : class breathe mat
    gym weightlifting : weight workout
    ski skiing snowboard : snow slope
    fishing : lake rod catch
    surf surfing : wave board
    horse riding : stable ride saddle
    parasite pest : mite tick flea lice slug mouse rat moth
    refund reimburse reimbursement expense : receipt money
    secret surprise : hide
    neighbour : door street next
    award nominate : ceremony
    schedule plan calendar appointment : date book
    deadline due : until
    end finish complete : done over last
    start begin join launch open opening : first new
    owner own : belong
    manure fertilizer : dung compost
    cancel terminate : give stop
"""

#: What a question asks for without naming it, and the words that answer it.
_WHEN, _HOW_MANY = "when", "how many"
_ASKED = (
    (
        _WHEN,
        re.compile(r"\b(when|(what|which) (day|date|month|year|time)|how long)\b"),
        "yesterday today tonight tomorrow last next ago since week weekend month year morning evening monday tuesday "
        "wednesday thursday friday saturday sunday january february march april june july august september october "
        "november december",
    ),
    (
        _HOW_MANY,
        re.compile(r"\bhow (many|much|long|old|far|big|often)\b"),
        "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy eighty "
        "ninety hundred thousand million dozen half",
    ),
)


def groups_of(words: Iterable[str]) -> list[str]:
    """The groups that words of a record belong to, each once, by names of our own."""
    members = _filed().members
    found = ((_HOW_MANY,) if word.isdigit() else members.get(stem(word), ()) for word in words)
    return list(dict.fromkeys(group for groups in found for group in groups))


def groups_asked(words: Iterable[str], question: str) -> list[str]:
    """The groups that a question asks for. ``words`` are those of it that tell something, ``question`` is all of it."""
    asked = [group for group, pattern, _ in _ASKED if pattern.search(question.lower())]
    heads = _filed().heads
    return list(dict.fromkeys([*asked, *(group for word in words for group in heads.get(stem(word), ()))]))


@attrs.frozen
class _Filed:
    """Stem -> the groups it asks for; stem -> the groups it belongs to."""

    heads: Mapping[str, tuple[str, ...]]
    members: Mapping[str, tuple[str, ...]]


@cache
def _filed() -> _Filed:
    """Made when memory is first used: the daemon's start need not wait for it."""
    heads: dict[str, tuple[str, ...]] = {}
    members: dict[str, tuple[str, ...]] = {}

    def add(to: dict[str, tuple[str, ...]], words: str, group: str) -> None:
        for key in dict.fromkeys(stem(BASE_FORMS.get(word, word)) for word in words.split()):
            to[key] = (*to.get(key, ()), group)

    for group, _, words in _ASKED:
        add(members, words, group)
    for line in re.split(r"\n {4}(?! )", _GROUPS)[1:]:
        asking, _, found = line.partition(":")
        group = " ".join(asking.split())
        add(heads, asking, group)
        add(members, f"{asking} {found}", group)
    return _Filed(heads, members)
