package geo

import "github.com/perigee-net/perigee/cluster/spec"

// country is where one country stands for its clients.
type country struct {
	continent string
	location  spec.Location
}

// countries are the countries by ISO 3166-1 code, and XK, which databases use for Kosovo. The places are those
// of the first zone of the country in tzdata's zone.tab (public domain) or, where that is not near most of
// the people, the largest city or the mean centre of population. The United States are the one country where
// this decides between far regions: their centre is in Missouri, so a client of whom no more is known than "US"
// goes to Ohio or Virginia rather than to Oregon, to which about three of four people there are nearer.
var countries = map[string]country{
	"AD": {"EU", spec.Location{Latitude: 42.50, Longitude: 1.52}},     // Andorra
	"AE": {"AS", spec.Location{Latitude: 25.30, Longitude: 55.30}},    // Dubai
	"AF": {"AS", spec.Location{Latitude: 34.52, Longitude: 69.20}},    // Kabul
	"AG": {"NA", spec.Location{Latitude: 17.05, Longitude: -61.80}},   // Antigua
	"AI": {"NA", spec.Location{Latitude: 18.20, Longitude: -63.07}},   // Anguilla
	"AL": {"EU", spec.Location{Latitude: 41.33, Longitude: 19.83}},    // Tirane
	"AM": {"AS", spec.Location{Latitude: 40.18, Longitude: 44.50}},    // Yerevan
	"AO": {"AF", spec.Location{Latitude: -8.80, Longitude: 13.23}},    // Luanda
	"AQ": {"AN", spec.Location{Latitude: -77.83, Longitude: 166.60}},  // McMurdo
	"AR": {"SA", spec.Location{Latitude: -34.60, Longitude: -58.45}},  // Buenos Aires
	"AS": {"OC", spec.Location{Latitude: -14.27, Longitude: -170.70}}, // Pago Pago
	"AT": {"EU", spec.Location{Latitude: 48.22, Longitude: 16.33}},    // Vienna
	"AU": {"OC", spec.Location{Latitude: -33.87, Longitude: 151.22}},  // Sydney
	"AW": {"NA", spec.Location{Latitude: 12.50, Longitude: -69.97}},   // Aruba
	"AX": {"EU", spec.Location{Latitude: 60.10, Longitude: 19.95}},    // Mariehamn
	"AZ": {"AS", spec.Location{Latitude: 40.38, Longitude: 49.85}},    // Baku
	"BA": {"EU", spec.Location{Latitude: 43.87, Longitude: 18.42}},    // Sarajevo
	"BB": {"NA", spec.Location{Latitude: 13.10, Longitude: -59.62}},   // Barbados
	"BD": {"AS", spec.Location{Latitude: 23.72, Longitude: 90.42}},    // Dhaka
	"BE": {"EU", spec.Location{Latitude: 50.83, Longitude: 4.33}},     // Brussels
	"BF": {"AF", spec.Location{Latitude: 12.37, Longitude: -1.52}},    // Ouagadougou
	"BG": {"EU", spec.Location{Latitude: 42.68, Longitude: 23.32}},    // Sofia
	"BH": {"AS", spec.Location{Latitude: 26.38, Longitude: 50.58}},    // Bahrain
	"BI": {"AF", spec.Location{Latitude: -3.38, Longitude: 29.37}},    // Bujumbura
	"BJ": {"AF", spec.Location{Latitude: 6.48, Longitude: 2.62}},      // Porto-Novo
	"BL": {"NA", spec.Location{Latitude: 17.88, Longitude: -62.85}},   // St Barthelemy
	"BM": {"NA", spec.Location{Latitude: 32.28, Longitude: -64.77}},   // Bermuda
	"BN": {"AS", spec.Location{Latitude: 4.93, Longitude: 114.92}},    // Brunei
	"BO": {"SA", spec.Location{Latitude: -16.50, Longitude: -68.15}},  // La Paz
	"BQ": {"NA", spec.Location{Latitude: 12.15, Longitude: -68.28}},   // Kralendijk
	"BR": {"SA", spec.Location{Latitude: -23.53, Longitude: -46.62}},  // Sao Paulo
	"BS": {"NA", spec.Location{Latitude: 25.08, Longitude: -77.35}},   // Nassau
	"BT": {"AS", spec.Location{Latitude: 27.47, Longitude: 89.65}},    // Thimphu
	"BV": {"AN", spec.Location{Latitude: -54.42, Longitude: 3.38}},    // Bouvet Island
	"BW": {"AF", spec.Location{Latitude: -24.65, Longitude: 25.92}},   // Gaborone
	"BY": {"EU", spec.Location{Latitude: 53.90, Longitude: 27.57}},    // Minsk
	"BZ": {"NA", spec.Location{Latitude: 17.50, Longitude: -88.20}},   // Belize
	"CA": {"NA", spec.Location{Latitude: 43.65, Longitude: -79.38}},   // Toronto
	"CC": {"AS", spec.Location{Latitude: -12.17, Longitude: 96.92}},   // Cocos
	"CD": {"AF", spec.Location{Latitude: -4.30, Longitude: 15.30}},    // Kinshasa
	"CF": {"AF", spec.Location{Latitude: 4.37, Longitude: 18.58}},     // Bangui
	"CG": {"AF", spec.Location{Latitude: -4.27, Longitude: 15.28}},    // Brazzaville
	"CH": {"EU", spec.Location{Latitude: 47.38, Longitude: 8.53}},     // Zurich
	"CI": {"AF", spec.Location{Latitude: 5.32, Longitude: -4.03}},     // Abidjan
	"CK": {"OC", spec.Location{Latitude: -21.23, Longitude: -159.77}}, // Rarotonga
	"CL": {"SA", spec.Location{Latitude: -33.45, Longitude: -70.67}},  // Santiago
	"CM": {"AF", spec.Location{Latitude: 4.05, Longitude: 9.70}},      // Douala
	"CN": {"AS", spec.Location{Latitude: 32.50, Longitude: 113.60}},   // mean centre of population, Henan
	"CO": {"SA", spec.Location{Latitude: 4.60, Longitude: -74.08}},    // Bogota
	"CR": {"NA", spec.Location{Latitude: 9.93, Longitude: -84.08}},    // Costa Rica
	"CU": {"NA", spec.Location{Latitude: 23.13, Longitude: -82.37}},   // Havana
	"CV": {"AF", spec.Location{Latitude: 14.92, Longitude: -23.52}},   // Cape Verde
	"CW": {"NA", spec.Location{Latitude: 12.18, Longitude: -69.00}},   // Curacao
	"CX": {"AS", spec.Location{Latitude: -10.42, Longitude: 105.72}},  // Christmas
	"CY": {"EU", spec.Location{Latitude: 35.17, Longitude: 33.37}},    // Nicosia
	"CZ": {"EU", spec.Location{Latitude: 50.08, Longitude: 14.43}},    // Prague
	"DE": {"EU", spec.Location{Latitude: 52.50, Longitude: 13.37}},    // Berlin
	"DJ": {"AF", spec.Location{Latitude: 11.60, Longitude: 43.15}},    // Djibouti
	"DK": {"EU", spec.Location{Latitude: 55.67, Longitude: 12.58}},    // Copenhagen
	"DM": {"NA", spec.Location{Latitude: 15.30, Longitude: -61.40}},   // Dominica
	"DO": {"NA", spec.Location{Latitude: 18.47, Longitude: -69.90}},   // Santo Domingo
	"DZ": {"AF", spec.Location{Latitude: 36.78, Longitude: 3.05}},     // Algiers
	"EC": {"SA", spec.Location{Latitude: -2.17, Longitude: -79.83}},   // Guayaquil
	"EE": {"EU", spec.Location{Latitude: 59.42, Longitude: 24.75}},    // Tallinn
	"EG": {"AF", spec.Location{Latitude: 30.05, Longitude: 31.25}},    // Cairo
	"EH": {"AF", spec.Location{Latitude: 27.15, Longitude: -13.20}},   // El Aaiun
	"ER": {"AF", spec.Location{Latitude: 15.33, Longitude: 38.88}},    // Asmara
	"ES": {"EU", spec.Location{Latitude: 40.40, Longitude: -3.68}},    // Madrid
	"ET": {"AF", spec.Location{Latitude: 9.03, Longitude: 38.70}},     // Addis Ababa
	"FI": {"EU", spec.Location{Latitude: 60.17, Longitude: 24.97}},    // Helsinki
	"FJ": {"OC", spec.Location{Latitude: -18.13, Longitude: 178.42}},  // Fiji
	"FK": {"SA", spec.Location{Latitude: -51.70, Longitude: -57.85}},  // Stanley
	"FM": {"OC", spec.Location{Latitude: 7.42, Longitude: 151.78}},    // Chuuk
	"FO": {"EU", spec.Location{Latitude: 62.02, Longitude: -6.77}},    // Faroe
	"FR": {"EU", spec.Location{Latitude: 48.87, Longitude: 2.33}},     // Paris
	"GA": {"AF", spec.Location{Latitude: 0.38, Longitude: 9.45}},      // Libreville
	"GB": {"EU", spec.Location{Latitude: 51.51, Longitude: -0.13}},    // London
	"GD": {"NA", spec.Location{Latitude: 12.05, Longitude: -61.75}},   // Grenada
	"GE": {"AS", spec.Location{Latitude: 41.72, Longitude: 44.82}},    // Tbilisi
	"GF": {"SA", spec.Location{Latitude: 4.93, Longitude: -52.33}},    // Cayenne
	"GG": {"EU", spec.Location{Latitude: 49.45, Longitude: -2.54}},    // Guernsey
	"GH": {"AF", spec.Location{Latitude: 5.55, Longitude: -0.22}},     // Accra
	"GI": {"EU", spec.Location{Latitude: 36.13, Longitude: -5.35}},    // Gibraltar
	"GL": {"NA", spec.Location{Latitude: 64.18, Longitude: -51.73}},   // Nuuk
	"GM": {"AF", spec.Location{Latitude: 13.47, Longitude: -16.65}},   // Banjul
	"GN": {"AF", spec.Location{Latitude: 9.52, Longitude: -13.72}},    // Conakry
	"GP": {"NA", spec.Location{Latitude: 16.23, Longitude: -61.53}},   // Guadeloupe
	"GQ": {"AF", spec.Location{Latitude: 3.75, Longitude: 8.78}},      // Malabo
	"GR": {"EU", spec.Location{Latitude: 37.97, Longitude: 23.72}},    // Athens
	"GS": {"AN", spec.Location{Latitude: -54.27, Longitude: -36.53}},  // South Georgia
	"GT": {"NA", spec.Location{Latitude: 14.63, Longitude: -90.52}},   // Guatemala
	"GU": {"OC", spec.Location{Latitude: 13.47, Longitude: 144.75}},   // Guam
	"GW": {"AF", spec.Location{Latitude: 11.85, Longitude: -15.58}},   // Bissau
	"GY": {"SA", spec.Location{Latitude: 6.80, Longitude: -58.17}},    // Guyana
	"HK": {"AS", spec.Location{Latitude: 22.28, Longitude: 114.15}},   // Hong Kong
	"HM": {"AN", spec.Location{Latitude: -53.10, Longitude: 73.52}},   // Heard Island
	"HN": {"NA", spec.Location{Latitude: 14.10, Longitude: -87.22}},   // Tegucigalpa
	"HR": {"EU", spec.Location{Latitude: 45.80, Longitude: 15.97}},    // Zagreb
	"HT": {"NA", spec.Location{Latitude: 18.53, Longitude: -72.33}},   // Port-au-Prince
	"HU": {"EU", spec.Location{Latitude: 47.50, Longitude: 19.08}},    // Budapest
	"ID": {"AS", spec.Location{Latitude: -6.17, Longitude: 106.80}},   // Jakarta
	"IE": {"EU", spec.Location{Latitude: 53.33, Longitude: -6.25}},    // Dublin
	"IL": {"AS", spec.Location{Latitude: 31.78, Longitude: 35.22}},    // Jerusalem
	"IM": {"EU", spec.Location{Latitude: 54.15, Longitude: -4.47}},    // Isle of Man
	"IN": {"AS", spec.Location{Latitude: 21.15, Longitude: 79.09}},    // Nagpur, near the mean centre of population
	"IO": {"AS", spec.Location{Latitude: -7.33, Longitude: 72.42}},    // Chagos
	"IQ": {"AS", spec.Location{Latitude: 33.35, Longitude: 44.42}},    // Baghdad
	"IR": {"AS", spec.Location{Latitude: 35.67, Longitude: 51.43}},    // Tehran
	"IS": {"EU", spec.Location{Latitude: 64.15, Longitude: -21.85}},   // Reykjavik
	"IT": {"EU", spec.Location{Latitude: 41.90, Longitude: 12.48}},    // Rome
	"JE": {"EU", spec.Location{Latitude: 49.18, Longitude: -2.11}},    // Jersey
	"JM": {"NA", spec.Location{Latitude: 17.97, Longitude: -76.79}},   // Jamaica
	"JO": {"AS", spec.Location{Latitude: 31.95, Longitude: 35.93}},    // Amman
	"JP": {"AS", spec.Location{Latitude: 35.65, Longitude: 139.74}},   // Tokyo
	"KE": {"AF", spec.Location{Latitude: -1.28, Longitude: 36.82}},    // Nairobi
	"KG": {"AS", spec.Location{Latitude: 42.90, Longitude: 74.60}},    // Bishkek
	"KH": {"AS", spec.Location{Latitude: 11.55, Longitude: 104.92}},   // Phnom Penh
	"KI": {"OC", spec.Location{Latitude: 1.42, Longitude: 173.00}},    // Tarawa
	"KM": {"AF", spec.Location{Latitude: -11.68, Longitude: 43.27}},   // Comoro
	"KN": {"NA", spec.Location{Latitude: 17.30, Longitude: -62.72}},   // St Kitts
	"KP": {"AS", spec.Location{Latitude: 39.02, Longitude: 125.75}},   // Pyongyang
	"KR": {"AS", spec.Location{Latitude: 37.55, Longitude: 126.97}},   // Seoul
	"KW": {"AS", spec.Location{Latitude: 29.33, Longitude: 47.98}},    // Kuwait
	"KY": {"NA", spec.Location{Latitude: 19.30, Longitude: -81.38}},   // Cayman
	"KZ": {"AS", spec.Location{Latitude: 43.25, Longitude: 76.95}},    // Almaty
	"LA": {"AS", spec.Location{Latitude: 17.97, Longitude: 102.60}},   // Vientiane
	"LB": {"AS", spec.Location{Latitude: 33.88, Longitude: 35.50}},    // Beirut
	"LC": {"NA", spec.Location{Latitude: 14.02, Longitude: -61.00}},   // St Lucia
	"LI": {"EU", spec.Location{Latitude: 47.15, Longitude: 9.52}},     // Vaduz
	"LK": {"AS", spec.Location{Latitude: 6.93, Longitude: 79.85}},     // Colombo
	"LR": {"AF", spec.Location{Latitude: 6.30, Longitude: -10.78}},    // Monrovia
	"LS": {"AF", spec.Location{Latitude: -29.47, Longitude: 27.50}},   // Maseru
	"LT": {"EU", spec.Location{Latitude: 54.68, Longitude: 25.32}},    // Vilnius
	"LU": {"EU", spec.Location{Latitude: 49.60, Longitude: 6.15}},     // Luxembourg
	"LV": {"EU", spec.Location{Latitude: 56.95, Longitude: 24.10}},    // Riga
	"LY": {"AF", spec.Location{Latitude: 32.90, Longitude: 13.18}},    // Tripoli
	"MA": {"AF", spec.Location{Latitude: 33.65, Longitude: -7.58}},    // Casablanca
	"MC": {"EU", spec.Location{Latitude: 43.70, Longitude: 7.38}},     // Monaco
	"MD": {"EU", spec.Location{Latitude: 47.00, Longitude: 28.83}},    // Chisinau
	"ME": {"EU", spec.Location{Latitude: 42.43, Longitude: 19.27}},    // Podgorica
	"MF": {"NA", spec.Location{Latitude: 18.07, Longitude: -63.08}},   // Marigot
	"MG": {"AF", spec.Location{Latitude: -18.92, Longitude: 47.52}},   // Antananarivo
	"MH": {"OC", spec.Location{Latitude: 7.15, Longitude: 171.20}},    // Majuro
	"MK": {"EU", spec.Location{Latitude: 41.98, Longitude: 21.43}},    // Skopje
	"ML": {"AF", spec.Location{Latitude: 12.65, Longitude: -8.00}},    // Bamako
	"MM": {"AS", spec.Location{Latitude: 16.78, Longitude: 96.17}},    // Yangon
	"MN": {"AS", spec.Location{Latitude: 47.92, Longitude: 106.88}},   // Ulaanbaatar
	"MO": {"AS", spec.Location{Latitude: 22.20, Longitude: 113.54}},   // Macau
	"MP": {"OC", spec.Location{Latitude: 15.20, Longitude: 145.75}},   // Saipan
	"MQ": {"NA", spec.Location{Latitude: 14.60, Longitude: -61.08}},   // Martinique
	"MR": {"AF", spec.Location{Latitude: 18.10, Longitude: -15.95}},   // Nouakchott
	"MS": {"NA", spec.Location{Latitude: 16.72, Longitude: -62.22}},   // Montserrat
	"MT": {"EU", spec.Location{Latitude: 35.90, Longitude: 14.52}},    // Malta
	"MU": {"AF", spec.Location{Latitude: -20.17, Longitude: 57.50}},   // Mauritius
	"MV": {"AS", spec.Location{Latitude: 4.17, Longitude: 73.50}},     // Maldives
	"MW": {"AF", spec.Location{Latitude: -15.78, Longitude: 35.00}},   // Blantyre
	"MX": {"NA", spec.Location{Latitude: 19.40, Longitude: -99.15}},   // Mexico City
	"MY": {"AS", spec.Location{Latitude: 3.17, Longitude: 101.70}},    // Kuala Lumpur
	"MZ": {"AF", spec.Location{Latitude: -25.97, Longitude: 32.58}},   // Maputo
	"NA": {"AF", spec.Location{Latitude: -22.57, Longitude: 17.10}},   // Windhoek
	"NC": {"OC", spec.Location{Latitude: -22.27, Longitude: 166.45}},  // Noumea
	"NE": {"AF", spec.Location{Latitude: 13.52, Longitude: 2.12}},     // Niamey
	"NF": {"OC", spec.Location{Latitude: -29.05, Longitude: 167.97}},  // Norfolk
	"NG": {"AF", spec.Location{Latitude: 6.45, Longitude: 3.40}},      // Lagos
	"NI": {"NA", spec.Location{Latitude: 12.15, Longitude: -86.28}},   // Managua
	"NL": {"EU", spec.Location{Latitude: 52.37, Longitude: 4.90}},     // Amsterdam
	"NO": {"EU", spec.Location{Latitude: 59.92, Longitude: 10.75}},    // Oslo
	"NP": {"AS", spec.Location{Latitude: 27.72, Longitude: 85.32}},    // Kathmandu
	"NR": {"OC", spec.Location{Latitude: -0.52, Longitude: 166.92}},   // Nauru
	"NU": {"OC", spec.Location{Latitude: -19.02, Longitude: -169.92}}, // Niue
	"NZ": {"OC", spec.Location{Latitude: -36.87, Longitude: 174.77}},  // Auckland
	"OM": {"AS", spec.Location{Latitude: 23.60, Longitude: 58.58}},    // Muscat
	"PA": {"NA", spec.Location{Latitude: 8.97, Longitude: -79.53}},    // Panama
	"PE": {"SA", spec.Location{Latitude: -12.05, Longitude: -77.05}},  // Lima
	"PF": {"OC", spec.Location{Latitude: -17.53, Longitude: -149.57}}, // Tahiti
	"PG": {"OC", spec.Location{Latitude: -9.50, Longitude: 147.17}},   // Port Moresby
	"PH": {"AS", spec.Location{Latitude: 14.59, Longitude: 120.97}},   // Manila
	"PK": {"AS", spec.Location{Latitude: 31.55, Longitude: 74.34}},    // Lahore
	"PL": {"EU", spec.Location{Latitude: 52.25, Longitude: 21.00}},    // Warsaw
	"PM": {"NA", spec.Location{Latitude: 47.05, Longitude: -56.33}},   // Miquelon
	"PN": {"OC", spec.Location{Latitude: -25.07, Longitude: -130.08}}, // Pitcairn
	"PR": {"NA", spec.Location{Latitude: 18.47, Longitude: -66.11}},   // Puerto Rico
	"PS": {"AS", spec.Location{Latitude: 31.50, Longitude: 34.47}},    // Gaza
	"PT": {"EU", spec.Location{Latitude: 38.72, Longitude: -9.13}},    // Lisbon
	"PW": {"OC", spec.Location{Latitude: 7.33, Longitude: 134.48}},    // Palau
	"PY": {"SA", spec.Location{Latitude: -25.27, Longitude: -57.67}},  // Asuncion
	"QA": {"AS", spec.Location{Latitude: 25.28, Longitude: 51.53}},    // Qatar
	"RE": {"AF", spec.Location{Latitude: -20.87, Longitude: 55.47}},   // Reunion
	"RO": {"EU", spec.Location{Latitude: 44.43, Longitude: 26.10}},    // Bucharest
	"RS": {"EU", spec.Location{Latitude: 44.83, Longitude: 20.50}},    // Belgrade
	"RU": {"EU", spec.Location{Latitude: 55.76, Longitude: 37.62}},    // Moscow
	"RW": {"AF", spec.Location{Latitude: -1.95, Longitude: 30.07}},    // Kigali
	"SA": {"AS", spec.Location{Latitude: 24.63, Longitude: 46.72}},    // Riyadh
	"SB": {"OC", spec.Location{Latitude: -9.53, Longitude: 160.20}},   // Guadalcanal
	"SC": {"AF", spec.Location{Latitude: -4.67, Longitude: 55.47}},    // Mahe
	"SD": {"AF", spec.Location{Latitude: 15.60, Longitude: 32.53}},    // Khartoum
	"SE": {"EU", spec.Location{Latitude: 59.33, Longitude: 18.05}},    // Stockholm
	"SG": {"AS", spec.Location{Latitude: 1.28, Longitude: 103.85}},    // Singapore
	"SH": {"AF", spec.Location{Latitude: -15.92, Longitude: -5.70}},   // St Helena
	"SI": {"EU", spec.Location{Latitude: 46.05, Longitude: 14.52}},    // Ljubljana
	"SJ": {"EU", spec.Location{Latitude: 78.00, Longitude: 16.00}},    // Longyearbyen
	"SK": {"EU", spec.Location{Latitude: 48.15, Longitude: 17.12}},    // Bratislava
	"SL": {"AF", spec.Location{Latitude: 8.50, Longitude: -13.25}},    // Freetown
	"SM": {"EU", spec.Location{Latitude: 43.92, Longitude: 12.47}},    // San Marino
	"SN": {"AF", spec.Location{Latitude: 14.67, Longitude: -17.43}},   // Dakar
	"SO": {"AF", spec.Location{Latitude: 2.07, Longitude: 45.37}},     // Mogadishu
	"SR": {"SA", spec.Location{Latitude: 5.83, Longitude: -55.17}},    // Paramaribo
	"SS": {"AF", spec.Location{Latitude: 4.85, Longitude: 31.62}},     // Juba
	"ST": {"AF", spec.Location{Latitude: 0.33, Longitude: 6.73}},      // Sao Tome
	"SV": {"NA", spec.Location{Latitude: 13.70, Longitude: -89.20}},   // El Salvador
	"SX": {"NA", spec.Location{Latitude: 18.05, Longitude: -63.05}},   // Lower Princes
	"SY": {"AS", spec.Location{Latitude: 33.50, Longitude: 36.30}},    // Damascus
	"SZ": {"AF", spec.Location{Latitude: -26.30, Longitude: 31.10}},   // Mbabane
	"TC": {"NA", spec.Location{Latitude: 21.47, Longitude: -71.13}},   // Grand Turk
	"TD": {"AF", spec.Location{Latitude: 12.12, Longitude: 15.05}},    // Ndjamena
	"TF": {"AN", spec.Location{Latitude: -49.35, Longitude: 70.22}},   // Kerguelen
	"TG": {"AF", spec.Location{Latitude: 6.13, Longitude: 1.22}},      // Lome
	"TH": {"AS", spec.Location{Latitude: 13.75, Longitude: 100.52}},   // Bangkok
	"TJ": {"AS", spec.Location{Latitude: 38.58, Longitude: 68.80}},    // Dushanbe
	"TK": {"OC", spec.Location{Latitude: -9.37, Longitude: -171.23}},  // Fakaofo
	"TL": {"OC", spec.Location{Latitude: -8.55, Longitude: 125.58}},   // Dili
	"TM": {"AS", spec.Location{Latitude: 37.95, Longitude: 58.38}},    // Ashgabat
	"TN": {"AF", spec.Location{Latitude: 36.80, Longitude: 10.18}},    // Tunis
	"TO": {"OC", spec.Location{Latitude: -21.13, Longitude: -175.20}}, // Tongatapu
	"TR": {"AS", spec.Location{Latitude: 41.02, Longitude: 28.97}},    // Istanbul
	"TT": {"NA", spec.Location{Latitude: 10.65, Longitude: -61.52}},   // Port of Spain
	"TV": {"OC", spec.Location{Latitude: -8.52, Longitude: 179.22}},   // Funafuti
	"TW": {"AS", spec.Location{Latitude: 25.05, Longitude: 121.50}},   // Taipei
	"TZ": {"AF", spec.Location{Latitude: -6.80, Longitude: 39.28}},    // Dar es Salaam
	"UA": {"EU", spec.Location{Latitude: 50.43, Longitude: 30.52}},    // Kyiv
	"UG": {"AF", spec.Location{Latitude: 0.32, Longitude: 32.42}},     // Kampala
	"UM": {"OC", spec.Location{Latitude: 28.22, Longitude: -177.37}},  // Midway
	"US": {"NA", spec.Location{Latitude: 37.40, Longitude: -92.30}},   // mean centre of population, Missouri
	"UY": {"SA", spec.Location{Latitude: -34.91, Longitude: -56.21}},  // Montevideo
	"UZ": {"AS", spec.Location{Latitude: 41.33, Longitude: 69.30}},    // Tashkent
	"VA": {"EU", spec.Location{Latitude: 41.90, Longitude: 12.45}},    // Vatican
	"VC": {"NA", spec.Location{Latitude: 13.15, Longitude: -61.23}},   // St Vincent
	"VE": {"SA", spec.Location{Latitude: 10.50, Longitude: -66.93}},   // Caracas
	"VG": {"NA", spec.Location{Latitude: 18.45, Longitude: -64.62}},   // Tortola
	"VI": {"NA", spec.Location{Latitude: 18.35, Longitude: -64.93}},   // St Thomas
	"VN": {"AS", spec.Location{Latitude: 16.05, Longitude: 108.20}},   // Da Nang, between Hanoi and Ho Chi Minh City
	"VU": {"OC", spec.Location{Latitude: -17.67, Longitude: 168.42}},  // Efate
	"WF": {"OC", spec.Location{Latitude: -13.30, Longitude: -176.17}}, // Wallis
	"WS": {"OC", spec.Location{Latitude: -13.83, Longitude: -171.73}}, // Apia
	"XK": {"EU", spec.Location{Latitude: 42.67, Longitude: 21.17}},    // Pristina
	"YE": {"AS", spec.Location{Latitude: 15.35, Longitude: 44.21}},    // Sanaa
	"YT": {"AF", spec.Location{Latitude: -12.78, Longitude: 45.23}},   // Mayotte
	"ZA": {"AF", spec.Location{Latitude: -26.25, Longitude: 28.00}},   // Johannesburg
	"ZM": {"AF", spec.Location{Latitude: -15.42, Longitude: 28.28}},   // Lusaka
	"ZW": {"AF", spec.Location{Latitude: -17.83, Longitude: 31.05}},   // Harare
}
