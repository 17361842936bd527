#include "job/reference_set.h"

const struct reference_row reference_set[REFERENCE_ROWS] = {
    /* cooking */
    {"How long should I boil an egg?",
     "For a soft yolk, boil it for about six minutes. For a firm yolk, leave it in for nine to ten minutes, then "
     "cool it in cold water."},
    {"How do I cook rice so that it does not stick?",
     "Rinse the rice until the water runs clear, use two cups of water for each cup of rice, and let it rest "
     "covered for ten minutes after cooking."},
    {"What can I use instead of butter in a cake?",
     "You can use the same amount of margarine, or about three quarters as much vegetable oil. Applesauce also "
     "works if you want less fat."},
    {"How do I keep bread fresh for longer?",
     "Keep it in a paper bag or a bread box at room temperature. If you will not eat it within two days, slice it "
     "and freeze it."},
    {"What goes well with tomato soup?",
     "Grilled cheese sandwiches are a classic choice. Crusty bread, a green salad, or a few fresh basil leaves "
     "are good with it too."},
    {"How do I make a simple salad dressing?",
     "Mix three parts of olive oil with one part of vinegar, then add salt, pepper and a little mustard. Shake it "
     "in a jar until it is smooth."},
    {"Can I freeze cooked pasta?",
     "Yes. Let it cool, toss it with a little oil so that it does not clump, and freeze it in small portions for "
     "up to two months."},
    {"How do I know when chicken is done?",
     "The meat should be white all the way through and the juices should run clear. A thermometer in the thickest "
     "part should read 165 degrees Fahrenheit."},
    /* travel */
    {"What should I pack for a weekend trip?",
     "Pack two changes of clothes, comfortable shoes, toiletries, a phone charger, and any medicine you need. "
     "Check the weather before you close the bag."},
    {"How early should I be at the airport?",
     "Arrive about two hours before a domestic flight and three hours before an international one, so that you "
     "have time for security."},
    {"How can I avoid jet lag?",
     "Shift your bedtime a little in the days before you leave, drink plenty of water on the plane, and spend "
     "time in daylight when you arrive."},
    {"Is it better to travel by train or by car?",
     "The train lets you rest and is often cheaper for one person. A car gives you more freedom and can be "
     "cheaper for a family."},
    {"What documents do I need to travel abroad?",
     "You need a valid passport, and for some countries a visa. It is also wise to carry proof of travel "
     "insurance and a copy of your bookings."},
    {"How do I find cheap flights?",
     "Compare prices on several websites, be flexible with your dates, and book a few weeks ahead. Flights in the "
     "middle of the week often cost less."},
    {"What is the capital of Portugal?",
     "The capital of Portugal is Lisbon. It lies on the Atlantic coast, where the river Tagus meets the sea."},
    {"Which month is best to visit Japan?",
     "Many people like April, when the cherry trees bloom, or November, when the leaves turn red. Both months are "
     "mild and mostly dry."},
    /* arithmetic */
    {"What is 15 percent of 80?",
     "15 percent of 80 is 12. You can find it by taking 10 percent, which is 8, and adding half of that, which is "
     "4."},
    {"What is 7 times 8?",
     "7 times 8 is 56. If you forget it, start from 7 times 7, which is 49, and add another 7."},
    {"How many minutes are in a day?",
     "There are 1440 minutes in a day, because a day has 24 hours and each hour has 60 minutes."},
    {"How do I split a bill of 90 dollars between four people?",
     "Divide 90 by 4, which gives 22 dollars and 50 cents for each person. Round up a little if you want to leave "
     "a tip."},
    {"What is the average of 4, 8 and 12?",
     "The average is 8. Add the three numbers to get 24, and then divide the sum by 3."},
    {"How do I convert kilometers to miles?",
     "Multiply the number of kilometers by 0.62. For example, 10 kilometers are about 6.2 miles."},
    {"What is the area of a room that is 4 by 5 meters?",
     "The area is 20 square meters. To find the area of a rectangle, you multiply its length by its width."},
    {"If a train travels 60 miles an hour, how far does it go in three hours?",
     "It travels 180 miles. Distance is speed multiplied by time, so 60 times 3 gives 180."},
    /* writing */
    {"How do I start a formal letter?",
     "Begin with \"Dear\" and the person's title and last name, followed by a comma. If you do not know the name, "
     "write \"Dear Sir or Madam\"."},
    {"Can you give me another word for happy?",
     "Some other words for happy are glad, cheerful, joyful, and content. Which one fits best depends on the "
     "sentence."},
    {"How do I write a good summary?",
     "Read the text once, note the main points, and write them in your own words. Leave out examples and keep it "
     "short."},
    {"What is the difference between its and it's?",
     "\"Its\" shows that something belongs to a thing, while \"it's\" is short for \"it is\" or \"it has\"."},
    {"Write a short thank-you note for a birthday gift.",
     "Thank you so much for the lovely gift. It was very kind of you to think of me, and I look forward to seeing "
     "you soon."},
    {"How can I make my writing clearer?",
     "Use short sentences and common words, put the most important point first, and read the text aloud to find "
     "what is hard to follow."},
    {"How do I ask for a meeting by email?",
     "State the reason in one sentence, suggest two or three times, and ask which one suits best. Thank the "
     "reader at the end."},
    {"What is a metaphor?",
     "A metaphor describes one thing as if it were another, without using \"like\" or \"as\". An example is "
     "\"time is a thief\"."},
    /* definitions and the world */
    {"What is photosynthesis?",
     "Photosynthesis is the process by which plants use sunlight, water and carbon dioxide to make sugar. Oxygen "
     "is released along the way."},
    {"Why is the sky blue?",
     "Sunlight is scattered by the gases in the air, and blue light is scattered more than red light. That is why "
     "we see a blue sky."},
    {"What is inflation?",
     "Inflation is the rate at which prices rise over time. When it is high, the same amount of money buys fewer "
     "goods than before."},
    {"How many planets are in the solar system?",
     "There are eight planets in the solar system: Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and "
     "Neptune."},
    {"What does a mayor do?",
     "A mayor leads the government of a city or town. The mayor works with the council, proposes a budget, and "
     "represents the city."},
    {"Why do leaves change color in autumn?",
     "As days get shorter, trees stop making the green pigment chlorophyll. The yellow and red colors that were "
     "hidden then become visible."},
    {"What is the difference between a lake and a pond?",
     "A lake is usually larger and deeper than a pond. In most ponds, sunlight reaches the bottom, so plants can "
     "grow everywhere."},
    {"Who wrote Romeo and Juliet?",
     "Romeo and Juliet was written by William Shakespeare in the 1590s. It is one of his best known tragedies."},
    /* health */
    {"How much water should I drink a day?",
     "Most adults do well with about two liters of fluid a day. You need more in hot weather or when you exercise."},
    {"What can I do against a headache?",
     "Drink some water, rest in a dark and quiet room, and take a break from screens. If it is severe or lasts "
     "long, see a doctor."},
    {"How many hours should an adult sleep?",
     "Most adults need between seven and nine hours of sleep a night. Going to bed at the same time each day "
     "helps."},
    {"How do I treat a small cut?",
     "Wash your hands, rinse the cut with clean water, and press a clean cloth on it until the bleeding stops. "
     "Then cover it with a bandage."},
    {"What are good ways to relax after work?",
     "You could take a walk, listen to music, read, or stretch for a few minutes. Try to keep your phone out of "
     "reach for a while."},
    {"Is it healthy to skip breakfast?",
     "Some people feel fine without breakfast, while others get tired. What matters most is what you eat over the "
     "whole day."},
    {"How can I start running?",
     "Begin with short runs of ten minutes and walk in between. Run two or three times a week, and add a little "
     "time each week."},
    {"What helps against a sore throat?",
     "Warm tea with honey, gargling with salt water, and plenty of rest often help. See a doctor if it lasts "
     "longer than a week."},
    /* technology */
    {"How do I choose a strong password?",
     "Use at least twelve characters and mix words, numbers and symbols. Do not use the same password for more "
     "than one account."},
    {"My computer is slow. What can I do?",
     "Restart it, close programs you do not need, and check for updates. If the disk is almost full, delete or "
     "move some large files."},
    {"What is a web browser?",
     "A web browser is a program that shows websites. It asks a server for a page and then displays the text and "
     "images on your screen."},
    {"How do I take care of my phone's battery?",
     "Keep it out of the heat, avoid letting it run down completely, and lower the brightness of the screen when "
     "you can."},
    {"What does RAM do in a computer?",
     "RAM holds the data and programs that the computer is using right now. It is fast, but it loses its contents "
     "when the power is off."},
    {"How do I back up my photos?",
     "Copy them to an external drive or a cloud service on a regular schedule. It is safest to keep two copies in "
     "different places."},
    {"Why does my wifi keep dropping?",
     "The router may be too far away or blocked by walls. Move closer, restart the router, and check whether "
     "other devices have the same problem."},
    {"What is the difference between software and hardware?",
     "Hardware is the physical part of a computer, such as the screen and the chips. Software is the set of "
     "programs that run on it."},
    /* home and small talk */
    {"How are you today?",
     "I am doing well, thank you for asking. How are you, and what can I help you with today?"},
    {"How often should I water a cactus?",
     "Water it about once every two weeks in summer and once a month in winter. Let the soil dry out completely "
     "in between."},
    {"How do I remove a coffee stain from a shirt?",
     "Rinse the stain with cold water as soon as you can, rub in a little dish soap, and let it sit for ten "
     "minutes before you wash it."},
    {"What is a good gift for a new neighbor?",
     "A small plant, a homemade cake, or a basket of fruit are friendly choices. A card with your name and number "
     "is useful too."},
    {"Tell me something interesting about cats.",
     "Cats spend about two thirds of their lives asleep. They also use their whiskers to judge whether they fit "
     "through a narrow opening."},
    {"What should I do on a rainy day?",
     "You could read a book, bake something, watch a film, or tidy a drawer you have been ignoring. A board game "
     "with friends is fun too."},
    {"How do I say no politely?",
     "Thank the person for asking, say clearly that you cannot do it, and give a short reason if you like. You do "
     "not need to apologize at length."},
    {"Can you recommend a hobby that costs little?",
     "Drawing, walking, reading library books and learning to juggle all cost very little. Pick one that you can "
     "do for ten minutes a day."},
};
